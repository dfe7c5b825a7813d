// What is said at connecting, and requests: without an answer, with several, and to services that can be discovered.

#include "harness.h"

#include <stdio.h>
#include <string.h>

static void what_connect_asks_for_is_honoured(void) {
    story first, second;
    collector received;
    natsOptions *opts = options(&first);
    OK(natsOptions_SetName(opts, "silent"));
    OK(natsOptions_SetNoEcho(opts, true));
    OK(natsOptions_SetVerbose(opts, true));
    OK(natsOptions_SetPedantic(opts, true));
    natsConnection *silent = connect_with(opts), *other = connect_with(options(&second));
    collecting(silent, "echo", NULL, &received);
    publish(silent, "echo", "own");
    OK(natsConnection_Flush(silent));
    publish(other, "echo", "other");
    UNTIL(collected(&received) == 1);
    OK(natsConnection_Flush(silent));
    CHECK(collected(&received) == 1 && strcmp(received.last, "other") == 0);
}

static void a_request_without_responders_fails_at_once(void) {
    story story;
    natsConnection *nc = connect_with(options(&story));
    natsMsg *reply = NULL;
    int64_t started = now_milliseconds();
    EXPECT(NATS_NO_RESPONDERS, natsConnection_RequestString(&reply, nc, "nobody", "?", 5000));
    CHECK(now_milliseconds() - started < 4000);
    // Who only listens for the answer is told by a message with a status and no body.
    natsInbox *inbox;
    natsSubscription *subscription;
    const char *status = NULL;
    OK(natsInbox_Create(&inbox));
    OK(natsConnection_SubscribeSync(&subscription, nc, inbox));
    OK(natsConnection_PublishRequestString(nc, "nobody", inbox, "?"));
    // This client turns the message into an answer of its own.
    natsStatus got = natsSubscription_NextMsg(&reply, subscription, 5000);
    if (got == NATS_OK) OK(natsMsgHeader_Get(reply, "Status", &status));
    CHECK(got == NATS_NO_RESPONDERS || strcmp(status, "503") == 0);
    say("{\"answer\":\"%s\"}", natsStatus_GetText(got));
}

static void answer_three_times(natsConnection *nc, natsSubscription *subscription, natsMsg *message, void *closure) {
    (void)subscription;
    (void)closure;
    for (int part = 0; part < 3; part++) publish(nc, natsMsg_GetReply(message), "part");
    natsMsg_Destroy(message);
}

static void a_request_has_many_replies(void) {
    story first, second;
    collector replies;
    natsConnection *asking = connect_with(options(&first)), *answering = connect_with(options(&second));
    for (int responder = 0; responder < 3; responder++) {
        natsSubscription *subscription;
        OK(natsConnection_Subscribe(&subscription, answering, "roll.call", answer_three_times, NULL));
    }
    OK(natsConnection_Flush(answering));
    natsInbox *inbox;
    OK(natsInbox_Create(&inbox));
    collecting(asking, inbox, NULL, &replies);
    OK(natsConnection_PublishRequestString(asking, "roll.call", inbox, "?"));
    UNTIL(collected(&replies) == 9);
    say("{\"replies\":%d}", collected(&replies));
}

// This version of the client has no services of its own; what makes one is subscriptions and JSON.
static const char IDENTITY[] = "\"name\":\"shout\",\"id\":\"c-1\",\"version\":\"1.2.3\",\"metadata\":{}";

static void answer_discovery(natsConnection *nc, natsSubscription *subscription, natsMsg *message, void *closure) {
    (void)subscription;
    char answer[512];
    snprintf(answer, sizeof answer, "{\"type\":\"io.nats.micro.v1.%s\",%s}", (const char *)closure, IDENTITY);
    publish(nc, natsMsg_GetReply(message), answer);
    natsMsg_Destroy(message);
}

static void shout(natsConnection *nc, natsSubscription *subscription, natsMsg *message, void *closure) {
    (void)subscription;
    (void)closure;
    natsMsg *answer;
    OK(natsMsg_Create(&answer, natsMsg_GetReply(message), NULL, "HELLO", 5));
    OK(natsMsgHeader_Set(answer, "Nats-Service-Error", ""));
    OK(natsConnection_PublishMsg(nc, answer));
    natsMsg_Destroy(answer);
    natsMsg_Destroy(message);
}

static void discover(natsConnection *nc, const char *subject, const char *expected) {
    natsMsg *reply = NULL;
    OK(natsConnection_RequestString(&reply, nc, subject, "", 5000));
    CHECK(memmem(natsMsg_GetData(reply), (size_t)natsMsg_GetDataLength(reply), expected, strlen(expected)) != NULL);
    natsMsg_Destroy(reply);
}

static void services_are_discovered(void) {
    story first, second;
    natsConnection *asking = connect_with(options(&first)), *serving = connect_with(options(&second));
    natsSubscription *subscription, *named = NULL;
    OK(natsConnection_Subscribe(&subscription, serving, "$SRV.PING", answer_discovery, "ping_response"));
    OK(natsConnection_Subscribe(&named, serving, "$SRV.PING.shout", answer_discovery, "ping_response"));
    OK(natsConnection_Subscribe(&subscription, serving, "$SRV.INFO.shout.c-1", answer_discovery, "info_response"));
    OK(natsConnection_QueueSubscribe(&subscription, serving, "voice.shout", "q", shout, NULL));
    OK(natsConnection_Flush(serving));
    discover(asking, "$SRV.PING", "ping_response");
    discover(asking, "$SRV.PING.shout", "\"name\":\"shout\"");
    discover(asking, "$SRV.INFO.shout.c-1", "info_response");
    discover(asking, "voice.shout", "HELLO");
    OK(natsSubscription_Unsubscribe(named));
    OK(natsConnection_Flush(serving));
    natsMsg *reply = NULL;
    EXPECT(NATS_NO_RESPONDERS, natsConnection_RequestString(&reply, asking, "$SRV.PING.shout", "", 5000));
}

const behaviour services_behaviours[] = {
    {"what_connect_asks_for_is_honoured", what_connect_asks_for_is_honoured},
    {"a_request_without_responders_fails_at_once", a_request_without_responders_fails_at_once},
    {"a_request_has_many_replies", a_request_has_many_replies},
    {"services_are_discovered", services_are_discovered},
    {NULL, NULL},
};
