// Who is let in, and what happens to who does what it may not.

#include "harness.h"

#include <string.h>

static natsOptions *as(story *story, const char *user, const char *password) {
    natsOptions *opts = options(story);
    OK(natsOptions_SetUserInfo(opts, user, password));
    return opts;
}

static natsOptions *with_token(story *story, const char *token) {
    natsOptions *opts = options(story);
    OK(natsOptions_SetToken(opts, token));
    return opts;
}

static natsOptions *with_nkey(story *story, const char *key, const char *file) {
    natsOptions *opts = options(story);
    OK(natsOptions_SetNKeyFromSeed(opts, variable(key), variable(file)));
    return opts;
}

static void user_and_password_open_the_door(void) {
    story story;
    works(connect_with(as(&story, "ann", "plain")), "open.door");
    works(connect_with(as(&story, "bob", "hashed")), "open.door");
    REFUSED(NATS_CONNECTION_AUTH_FAILED, options(&story));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, as(&story, "ann", "wrong"));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, as(&story, "bob", "wrong"));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, as(&story, "eve", "plain"));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, with_token(&story, "plain"));
}

static void a_token_opens_the_door(void) {
    story story;
    works(connect_with(with_token(&story, "s3cr3t-token")), "open.door");
    REFUSED(NATS_CONNECTION_AUTH_FAILED, options(&story));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, with_token(&story, "s3cr3t-toke"));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, as(&story, "ann", "s3cr3t-token"));
}

static void an_nkey_opens_the_door(void) {
    story story;
    works(connect_with(with_nkey(&story, "BEHAVIOUR_NKEY", "BEHAVIOUR_NKEY_FILE")), "open.door");
    REFUSED(NATS_CONNECTION_AUTH_FAILED, options(&story));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, with_nkey(&story, "BEHAVIOUR_UNKNOWN_NKEY", "BEHAVIOUR_UNKNOWN_NKEY_FILE"));
    // A key that is known, signed by who does not have it.
    REFUSED(NATS_CONNECTION_AUTH_FAILED, with_nkey(&story, "BEHAVIOUR_NKEY", "BEHAVIOUR_UNKNOWN_NKEY_FILE"));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, as(&story, "ann", "plain"));
}

static void no_auth_user_is_who_says_nothing(void) {
    story guests, others;
    natsConnection *guest = connect_with(options(&guests));
    works(guest, "open.door");
    publish(guest, "closed.door", "x");
    UNTIL(told(&guests, &guests.errors) == 1);
    EXPECT(NATS_NOT_PERMITTED, last_error(&guests));
    say("{\"guest\":\"%s\"}", strstr(guests.last_error_text, "closed.door") != NULL ? "not permitted" : guests.last_error_text);
    works(connect_with(as(&others, "ann", "plain")), "closed.door");
    REFUSED(NATS_CONNECTION_AUTH_FAILED, as(&others, "ann", "wrong"));
}

static void violation(story *story, int number, const char *expected) {
    UNTIL(told(story, &story->errors) == number);
    EXPECT(NATS_NOT_PERMITTED, last_error(story));
    if (strstr(story->last_error_text, expected) == NULL) FAIL("%s is not in %s", expected, story->last_error_text);
}

static void violations_of_permissions_reach_the_error_handler(void) {
    story story;
    collector collector;
    natsConnection *nc = connect_with(as(&story, "ann", "plain"));
    publish(nc, "closed", "x");
    violation(&story, 1, "Publish to \"closed\"");
    publish(nc, "open.secret", "x");
    violation(&story, 2, "Publish to \"open.secret\"");
    collecting(nc, "closed", NULL, &collector);
    violation(&story, 3, "Subscription to \"closed\"");
    collecting(nc, "closed", "workers", &collector);
    violation(&story, 4, "Subscription to \"closed\" using queue \"workers\"");
    // The connection stays, and what is permitted goes on.
    works(nc, "open.door");
    CHECK(collected(&collector) == 0 && !natsConnection_IsClosed(nc));
    natsMsg *reply = NULL;
    EXPECT(NATS_NO_RESPONDERS, natsConnection_RequestString(&reply, nc, "open.nobody", "?", 5000));
    say("{\"errors\":%d,\"disconnected\":%d}", told(&story, &story.errors), told(&story, &story.disconnected));
}

const behaviour access_behaviours[] = {
    {"user_and_password_open_the_door", user_and_password_open_the_door},
    {"a_token_opens_the_door", a_token_opens_the_door},
    {"an_nkey_opens_the_door", an_nkey_opens_the_door},
    {"no_auth_user_is_who_says_nothing", no_auth_user_is_who_says_nothing},
    {"violations_of_permissions_reach_the_error_handler", violations_of_permissions_reach_the_error_handler},
    {NULL, NULL},
};
