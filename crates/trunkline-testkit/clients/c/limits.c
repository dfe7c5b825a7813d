// What there is too much of: messages for who reads slowly, bytes in one message, connections, subscriptions.

#include "harness.h"

#include <string.h>

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void behind_the_gate(natsConnection *nc, natsSubscription *subscription, natsMsg *message, void *closure) {
    (void)subscription;
    pthread_mutex_lock(&gate);
    collect(nc, message, closure);
    pthread_mutex_unlock(&gate);
    natsMsg_Destroy(message);
}

static void a_slow_subscription_drops_in_the_client(void) {
    story story, others;
    collector handled = {.lock = PTHREAD_MUTEX_INITIALIZER};
    natsConnection *nc = connect_with(options(&story)), *publisher = connect_with(options(&others));
    natsSubscription *subscription;
    pthread_mutex_lock(&gate);
    OK(natsConnection_Subscribe(&subscription, nc, "busy", behind_the_gate, &handled));
    OK(natsSubscription_SetPendingLimits(subscription, 10, -1));
    OK(natsConnection_Flush(nc));
    for (int number = 0; number < 100; number++) publish(publisher, "busy", "x");
    OK(natsConnection_Flush(publisher));
    OK(natsConnection_Flush(nc));
    UNTIL(told(&story, &story.errors) > 0);
    EXPECT(NATS_SLOW_CONSUMER, last_error(&story));
    pthread_mutex_unlock(&gate);
    int64_t dropped = 0;
    OK(natsSubscription_GetDropped(subscription, &dropped));
    UNTIL(collected(&handled) + dropped == 100);
    CHECK(dropped > 0);
    // The connection is none the worse for it.
    works(nc, "open.door");
    say("{\"slow\":true,\"disconnected\":%d}", told(&story, &story.disconnected));
}

static void a_slow_client_is_cut_off(void) {
    story story;
    collector flood, received;
    natsConnection *nc = connect_with(patient_options(&story));
    collecting(nc, "flood", NULL, &flood);
    collecting(nc, "still", NULL, &received);
    say("freeze-until-slow");
    UNTIL(told(&story, &story.reconnected) == 1);
    OK(natsConnection_Flush(nc));
    publish(nc, "still", "here");
    UNTIL(collected(&received) == 1);
    say("{\"disconnected\":%d,\"closed\":%d}", told(&story, &story.disconnected), told(&story, &story.closed));
}

static void too_large_a_payload_is_refused_in_the_client(void) {
    story story;
    collector received;
    static char payload[1025];
    natsConnection *nc = connect_with(options(&story));
    CHECK(natsConnection_GetMaxPayload(nc) == 1024);
    collecting(nc, "size", NULL, &received);
    EXPECT(NATS_MAX_PAYLOAD, natsConnection_Publish(nc, "size", payload, 1025));
    OK(natsConnection_Publish(nc, "size", payload, 1024));
    UNTIL(collected(&received) == 1);
}

static void too_large_a_payload_ends_the_connection(void) {
    story story;
    static char payload[1025];
    server_url = variable("BEHAVIOUR_PROXY");
    natsConnection *nc = connect_with(options(&story));
    CHECK(natsConnection_GetMaxPayload(nc) > 1024);
    OK(natsConnection_Publish(nc, "size", payload, 1025));
    UNTIL(told(&story, &story.closed) == 1);
    const char *text = NULL;
    natsStatus status = natsConnection_GetLastError(nc, &text);
    say("{\"last_error\":\"%s\",\"text\":\"%s\"}", natsStatus_GetText(status), text);
}

static void one_connection_too_many_is_refused(void) {
    story story;
    natsConnection *first = connect_with(options(&story)), *second = connect_with(options(&story)), *third = NULL;
    // The server closes behind its error, so that what the client says meanwhile may find the connection gone.
    natsOptions *opts = options(&story);
    CHECK(natsConnection_Connect(&third, opts) != NATS_OK);
    works(second, "open.door");
    natsConnection_Close(first);
    // The server may not yet know that there is room.
    UNTIL(natsConnection_Connect(&third, opts) == NATS_OK);
    works(third, "open.door");
}

static void one_subscription_too_many_is_refused(void) {
    story story;
    collector one, two;
    natsConnection *nc = connect_with(options(&story));
    natsSubscription *third;
    collecting(nc, "one", NULL, &one);
    collecting(nc, "two", NULL, &two);
    OK(natsConnection_SubscribeSync(&third, nc, "three"));
    // The server only refuses the subscription; this client takes every error but those of permissions for the end.
    UNTIL(told(&story, &story.closed) == 1);
    const char *text = NULL;
    natsStatus status = natsConnection_GetLastError(nc, &text);
    say("{\"last_error\":\"%s\",\"text\":\"%s\"}", natsStatus_GetText(status), text);
}

const behaviour limits_behaviours[] = {
    {"a_slow_subscription_drops_in_the_client", a_slow_subscription_drops_in_the_client},
    {"a_slow_client_is_cut_off", a_slow_client_is_cut_off},
    {"too_large_a_payload_is_refused_in_the_client", too_large_a_payload_is_refused_in_the_client},
    {"too_large_a_payload_ends_the_connection", too_large_a_payload_ends_the_connection},
    {"one_connection_too_many_is_refused", one_connection_too_many_is_refused},
    {"one_subscription_too_many_is_refused", one_subscription_too_many_is_refused},
    {NULL, NULL},
};
