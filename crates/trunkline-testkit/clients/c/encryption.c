// TLS, as far as a client sees it.

#include "harness.h"

static natsOptions *trusting(story *story, const char *authority) {
    natsOptions *opts = options(story);
    OK(natsOptions_SetSecure(opts, true));
    OK(natsOptions_LoadCATrustedCertificates(opts, variable(authority)));
    return opts;
}

static natsOptions *showing(story *story, const char *certificate, const char *key) {
    natsOptions *opts = trusting(story, "BEHAVIOUR_CA");
    OK(natsOptions_LoadCertificatesChain(opts, variable(certificate), variable(key)));
    return opts;
}

static void tls_is_required(void) {
    story story;
    works(connect_with(trusting(&story, "BEHAVIOUR_CA")), "open.door");
    REFUSED(NATS_SSL_ERROR, trusting(&story, "BEHAVIOUR_STRANGE_CA"));
    // A client that is not told to speak TLS reads in INFO that it must, and does not: it was given nobody to trust.
    natsOptions *plain = options(&story);
    natsConnection *nc = NULL;
    CHECK(natsConnection_Connect(&nc, plain) != NATS_OK);
}

static void tls_is_optional(void) {
    story story;
    works(connect_with(options(&story)), "open.door");
    // This version of the client looks for TLS that is required, and takes what is only available for none.
    REFUSED(NATS_SECURE_CONNECTION_WANTED, trusting(&story, "BEHAVIOUR_CA"));
}

static void tls_comes_first(void) {
    story story;
    // This version of the client waits for INFO, and the server for the client.
    natsOptions *opts = trusting(&story, "BEHAVIOUR_CA");
    OK(natsOptions_SetTimeout(opts, 500));
    natsConnection *nc = NULL;
    CHECK(natsConnection_Connect(&nc, opts) != NATS_OK);
}

static void tls_comes_first_for_who_begins_with_it(void) {
    story story;
    works(connect_with(trusting(&story, "BEHAVIOUR_CA")), "open.door");
}

static void a_client_certificate_is_verified(void) {
    story story;
    works(connect_with(showing(&story, "BEHAVIOUR_CERT", "BEHAVIOUR_KEY")), "open.door");
    natsOptions *none = trusting(&story, "BEHAVIOUR_CA");
    natsConnection *nc = NULL;
    CHECK(natsConnection_Connect(&nc, none) != NATS_OK);
}

static void a_client_certificate_names_a_user(void) {
    story anns, others;
    natsConnection *ann = connect_with(showing(&anns, "BEHAVIOUR_CERT", "BEHAVIOUR_KEY"));
    works(ann, "open.door");
    publish(ann, "closed", "x");
    UNTIL(told(&anns, &anns.errors) == 1);
    EXPECT(NATS_NOT_PERMITTED, last_error(&anns));
    REFUSED(NATS_CONNECTION_AUTH_FAILED, showing(&others, "BEHAVIOUR_NOBODY_CERT", "BEHAVIOUR_NOBODY_KEY"));
    natsOptions *none = trusting(&others, "BEHAVIOUR_CA");
    natsConnection *nc = NULL;
    CHECK(natsConnection_Connect(&nc, none) != NATS_OK);
}

static void a_secure_connection_comes_back(void) {
    story story;
    collector received;
    natsOptions *opts = patient_options(&story);
    OK(natsOptions_SetSecure(opts, true));
    OK(natsOptions_LoadCATrustedCertificates(opts, variable("BEHAVIOUR_CA")));
    OK(natsOptions_SetUserInfo(opts, "ann", "plain"));
    natsConnection *nc = connect_with(opts);
    collecting(nc, "still", NULL, &received);
    say("restart-server");
    is_back(nc, &story, &received);
    report_story(&story);
}

const behaviour encryption_behaviours[] = {
    {"tls_is_required", tls_is_required},
    {"tls_is_optional", tls_is_optional},
    {"tls_comes_first", tls_comes_first},
    {"tls_comes_first_for_who_begins_with_it", tls_comes_first_for_who_begins_with_it},
    {"a_client_certificate_is_verified", a_client_certificate_is_verified},
    {"a_client_certificate_names_a_user", a_client_certificate_names_a_user},
    {"a_secure_connection_comes_back", a_secure_connection_comes_back},
    {NULL, NULL},
};
