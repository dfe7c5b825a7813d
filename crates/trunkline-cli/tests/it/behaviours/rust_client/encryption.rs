//! TLS, as far as a client sees it.

use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions};
use serde_json::json;

use super::life::is_back;
use super::{Stage, next, publish, subscribe, works};

fn trusting(stage: &Stage, authority: &str) -> ConnectOptions {
    ConnectOptions::new()
        .require_tls(true)
        .connection_timeout(Duration::from_secs(3))
        .add_root_certificates(stage.variable(authority).into())
}

fn showing(stage: &Stage, certificate: &str, key: &str) -> ConnectOptions {
    let (certificate, key) = (stage.variable(certificate), stage.variable(key));
    trusting(stage, "BEHAVIOUR_CA").add_client_certificate(certificate.into(), key.into())
}

async fn fails(stage: &mut Stage, what: &str, options: ConnectOptions) {
    assert!(stage.connect(options).await.is_err(), "{what} gets a connection");
    stage.report(json!({"fails": what}));
}

pub(crate) async fn tls_is_required(stage: &mut Stage) {
    works(&stage.enter(trusting(stage, "BEHAVIOUR_CA")).await.0, "open.door").await;
    fails(stage, "a server of a strange authority", trusting(stage, "BEHAVIOUR_STRANGE_CA")).await;
    // It turns to TLS by itself, and trusts only whom the system trusts.
    fails(stage, "a client that was given nobody to trust", ConnectOptions::new()).await;
}

pub(crate) async fn tls_is_optional(stage: &mut Stage) {
    let (secure, _) = stage.enter(trusting(stage, "BEHAVIOUR_CA")).await;
    let (plain, _) = stage.enter(ConnectOptions::new()).await;
    let (mut to_secure, mut to_plain) = (subscribe(&secure, "both").await, subscribe(&plain, "both").await);
    publish(&secure, "both", "from the secure one").await;
    publish(&plain, "both", "from the plain one").await;
    for subscriber in [&mut to_secure, &mut to_plain] {
        let mut both = [next(subscriber).await, next(subscriber).await];
        both.sort();
        assert_eq!(both, ["from the plain one", "from the secure one"]);
    }
    fails(stage, "a server of a strange authority", trusting(stage, "BEHAVIOUR_STRANGE_CA")).await;
}

pub(crate) async fn tls_comes_first(stage: &mut Stage) {
    works(&stage.enter(trusting(stage, "BEHAVIOUR_CA").tls_first()).await.0, "open.door").await;
    let waiting = trusting(stage, "BEHAVIOUR_CA").connection_timeout(Duration::from_millis(500));
    fails(stage, "a client that waits for INFO", waiting).await;
    let strange = trusting(stage, "BEHAVIOUR_STRANGE_CA").tls_first();
    fails(stage, "a server of a strange authority", strange).await;
}

pub(crate) async fn tls_comes_first_for_who_begins_with_it(stage: &mut Stage) {
    works(&stage.enter(trusting(stage, "BEHAVIOUR_CA").tls_first()).await.0, "open.door").await;
    works(&stage.enter(trusting(stage, "BEHAVIOUR_CA")).await.0, "open.door").await;
}

pub(crate) async fn a_client_certificate_is_verified(stage: &mut Stage) {
    works(&stage.enter(showing(stage, "BEHAVIOUR_CERT", "BEHAVIOUR_KEY")).await.0, "open.door").await;
    fails(stage, "no certificate", trusting(stage, "BEHAVIOUR_CA")).await;
}

pub(crate) async fn a_client_certificate_names_a_user(stage: &mut Stage) {
    let (ann, story) = stage.enter(showing(stage, "BEHAVIOUR_CERT", "BEHAVIOUR_KEY")).await;
    works(&ann, "open.door").await;
    publish(&ann, "closed", "x").await;
    let violation = story.server_error("permissions violation for publish to \"closed\"").await;
    stage.report(json!({"violation": violation}));
    let nobody = showing(stage, "BEHAVIOUR_NOBODY_CERT", "BEHAVIOUR_NOBODY_KEY");
    let error = stage.connect(nobody).await.err().expect("a certificate that names nobody");
    assert_eq!(error.kind(), ConnectErrorKind::AuthorizationViolation, "{error}");
    fails(stage, "no certificate", trusting(stage, "BEHAVIOUR_CA")).await;
}

pub(crate) async fn a_secure_connection_comes_back(stage: &mut Stage) {
    let options = trusting(stage, "BEHAVIOUR_CA").user_and_password("ann".to_owned(), "plain".to_owned());
    let (client, story) = stage.enter(options).await;
    let mut received = subscribe(&client, "still").await;
    stage.cue("restart-server");
    is_back(&client, &story, &mut received).await;
    stage.report(json!({"events": story.texts()}));
}
