// How connections end and come back.

#include "harness.h"

#include <stdio.h>

void is_back(natsConnection *nc, story *story, collector *received) {
    UNTIL(told(story, &story->reconnected) > 0);
    OK(natsConnection_Flush(nc));
    publish(nc, "still", "here");
    UNTIL(collected(received) == 1);
}

void report_story(story *story) {
    say("{\"disconnected\":%d,\"reconnected\":%d,\"closed\":%d}", told(story, &story->disconnected),
        told(story, &story->reconnected), told(story, &story->closed));
}

static void publish_numbers(natsConnection *nc, const char *subject, int count) {
    char payload[16];
    for (int number = 0; number < count; number++) {
        snprintf(payload, sizeof payload, "%d", number);
        publish(nc, subject, payload);
    }
    OK(natsConnection_Flush(nc));
}

static void subscriptions_and_callbacks_live_through_a_restart(void) {
    story story;
    collector plain, grouped, limited;
    natsConnection *nc = connect_with(patient_options(&story));
    collecting(nc, "still", NULL, &plain);
    collecting(nc, "still", "workers", &grouped);
    natsSubscription *subscription = collecting(nc, "limited", NULL, &limited);
    OK(natsSubscription_AutoUnsubscribe(subscription, 3));
    OK(natsConnection_Flush(nc));
    publish(nc, "limited", "1");
    UNTIL(collected(&limited) == 1);
    say("restart-server");
    is_back(nc, &story, &plain);
    UNTIL(collected(&grouped) == 1);
    // Of the three messages one had come before.
    for (int number = 2; number <= 4; number++) publish(nc, "limited", "again");
    UNTIL(collected(&limited) == 3);
    OK(natsConnection_Flush(nc));
    CHECK(collected(&limited) == 3);
    report_story(&story);
}

static void a_drained_subscription_loses_nothing(void) {
    story first, second;
    collector handled;
    natsConnection *publisher = connect_with(options(&first)), *subscriber = connect_with(options(&second));
    natsSubscription *subscription = collecting(subscriber, "work", NULL, &handled);
    publish_numbers(publisher, "work", 1000);
    OK(natsSubscription_Drain(subscription));
    OK(natsSubscription_WaitForDrainCompletion(subscription, PATIENCE_MILLISECONDS));
    CHECK(collected(&handled) == 1000);
    for (int number = 0; number < 1000; number++) CHECK(handled.numbers[number] == number);
    publish_numbers(publisher, "work", 1);
    OK(natsConnection_Flush(subscriber));
    CHECK(collected(&handled) == 1000 && !natsConnection_IsClosed(subscriber));
    say("{\"handled\":%d}", collected(&handled));
}

static void pass_on(natsConnection *nc, natsSubscription *subscription, natsMsg *message, void *closure) {
    (void)subscription;
    (void)closure;
    OK(natsConnection_Publish(nc, "done", natsMsg_GetData(message), natsMsg_GetDataLength(message)));
    natsMsg_Destroy(message);
}

static void a_drained_connection_loses_nothing(void) {
    story first, second, third;
    collector done;
    natsConnection *publisher = connect_with(options(&first)), *observer = connect_with(options(&second));
    natsConnection *subscriber = connect_with(options(&third));
    natsSubscription *plain, *grouped;
    collecting(observer, "done", NULL, &done);
    OK(natsConnection_Subscribe(&plain, subscriber, "work", pass_on, NULL));
    OK(natsConnection_QueueSubscribe(&grouped, subscriber, "work", "workers", pass_on, NULL));
    OK(natsConnection_Flush(subscriber));
    publish_numbers(publisher, "work", 500);
    OK(natsConnection_Drain(subscriber));
    UNTIL(told(&third, &third.closed) == 1);
    UNTIL(collected(&done) == 1000);
    int seen[500] = {0};
    for (int n = 0; n < 1000; n++) seen[done.numbers[n]] += 1;
    for (int n = 0; n < 500; n++) CHECK(seen[n] == 2);
    say("{\"done\":%d,\"errors\":%d}", collected(&done), told(&third, &third.errors));
}

static void lame_duck_mode_is_told(void) {
    story story;
    collector received;
    natsConnection *nc = connect_with(options(&story));
    collecting(nc, "still", NULL, &received);
    say("lame-duck");
    UNTIL(told(&story, &story.lame_duck) == 1);
    // It is served until it is closed.
    publish(nc, "still", "here");
    UNTIL(collected(&received) == 1);
    UNTIL(told(&story, &story.closed) == 1);
    say("{\"lame_duck\":%d,\"disconnected\":%d}", story.lame_duck, told(&story, &story.disconnected));
}

static void shutdown_closes_the_connection(void) {
    story story;
    natsConnection *nc = connect_with(options(&story));
    works(nc, "last");
    say("stop-server");
    UNTIL(told(&story, &story.closed) == 1);
    say("{\"disconnected\":%d,\"errors\":%d}", told(&story, &story.disconnected), told(&story, &story.errors));
}

static void a_silent_client_is_cut_off(void) {
    story story;
    collector received;
    natsConnection *nc = connect_with(patient_options(&story));
    collecting(nc, "still", NULL, &received);
    say("freeze-until-gone");
    is_back(nc, &story, &received);
    report_story(&story);
}

static void a_silent_server_is_left(void) {
    story story;
    collector received;
    natsOptions *opts = patient_options(&story);
    OK(natsOptions_SetPingInterval(opts, 250));
    OK(natsOptions_SetMaxPingsOut(opts, 2));
    natsConnection *nc = connect_with(opts);
    collecting(nc, "still", NULL, &received);
    say("pause-server");
    UNTIL(told(&story, &story.disconnected) > 0);
    say("resume-server");
    is_back(nc, &story, &received);
}

const behaviour life_behaviours[] = {
    {"subscriptions_and_callbacks_live_through_a_restart", subscriptions_and_callbacks_live_through_a_restart},
    {"a_drained_subscription_loses_nothing", a_drained_subscription_loses_nothing},
    {"a_drained_connection_loses_nothing", a_drained_connection_loses_nothing},
    {"lame_duck_mode_is_told", lame_duck_mode_is_told},
    {"shutdown_closes_the_connection", shutdown_closes_the_connection},
    {"a_silent_client_is_cut_off", a_silent_client_is_cut_off},
    {"a_silent_server_is_left", a_silent_server_is_left},
    {NULL, NULL},
};
