//! Who is let in, and what happens to who does what it may not.

use async_nats::{ConnectErrorKind, ConnectOptions, RequestErrorKind};
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use serde_json::json;

use super::{Stage, publish, works};

fn as_user(user: &str, password: &str) -> ConnectOptions {
    ConnectOptions::new().user_and_password(user.to_owned(), password.to_owned())
}

fn with_token(token: &str) -> ConnectOptions {
    ConnectOptions::new().token(token.to_owned())
}

async fn refused(stage: &Stage, what: &str, options: ConnectOptions) {
    let error = stage.connect(options).await.err().unwrap_or_else(|| panic!("{what} opens the door"));
    assert_eq!(error.kind(), ConnectErrorKind::AuthorizationViolation, "{what}: {error}");
}

pub(crate) async fn user_and_password_open_the_door(stage: &mut Stage) {
    works(&stage.enter(as_user("ann", "plain")).await.0, "open.door").await;
    works(&stage.enter(as_user("bob", "hashed")).await.0, "open.door").await;
    refused(stage, "nobody", ConnectOptions::new()).await;
    refused(stage, "a wrong password", as_user("ann", "wrong")).await;
    refused(stage, "a wrong password for a hash", as_user("bob", "wrong")).await;
    refused(stage, "an unknown user", as_user("eve", "plain")).await;
    refused(stage, "a token", with_token("plain")).await;
}

pub(crate) async fn a_token_opens_the_door(stage: &mut Stage) {
    works(&stage.enter(with_token("s3cr3t-token")).await.0, "open.door").await;
    refused(stage, "no token", ConnectOptions::new()).await;
    refused(stage, "a wrong token", with_token("s3cr3t-toke")).await;
    refused(stage, "a user", as_user("ann", "s3cr3t-token")).await;
}

pub(crate) async fn an_nkey_opens_the_door(stage: &mut Stage) {
    let known = ConnectOptions::new().nkey(stage.file("BEHAVIOUR_NKEY_FILE"));
    works(&stage.enter(known).await.0, "open.door").await;
    refused(stage, "no nkey", ConnectOptions::new()).await;
    let unknown = ConnectOptions::new().nkey(stage.file("BEHAVIOUR_UNKNOWN_NKEY_FILE"));
    refused(stage, "an unknown nkey", unknown).await;
    refused(stage, "a user", as_user("ann", "plain")).await;
}

pub(crate) async fn no_auth_user_is_who_says_nothing(stage: &mut Stage) {
    let (guest, story) = stage.enter(ConnectOptions::new()).await;
    works(&guest, "open.door").await;
    publish(&guest, "closed.door", "x").await;
    let violation = story.server_error("permissions violation for publish to \"closed.door\"").await;
    stage.report(json!({"guest": violation}));
    works(&stage.enter(as_user("ann", "plain")).await.0, "closed.door").await;
    refused(stage, "a wrong password", as_user("ann", "wrong")).await;
}

pub(crate) async fn violations_of_permissions_reach_the_error_handler(stage: &mut Stage) {
    let (client, story) = stage.enter(as_user("ann", "plain")).await;
    for subject in ["closed", "open.secret"] {
        publish(&client, subject, "x").await;
        let violation = story.server_error(&format!("violation for publish to \"{subject}\"")).await;
        stage.report(json!({"publish": violation}));
    }
    let mut plain = client.subscribe("closed").await.expect("the client knows no better");
    let violation = story.server_error("violation for subscription to \"closed\"").await;
    stage.report(json!({"subscribe": violation}));
    let mut grouped =
        client.queue_subscribe("closed", "workers".into()).await.expect("the client knows no better");
    let violation = story.server_error("subscription to \"closed\" using queue \"workers\"").await;
    stage.report(json!({"subscribe": violation}));
    // The connection stays, and what is permitted goes on.
    works(&client, "open.door").await;
    assert!(plain.next().now_or_never().is_none() && grouped.next().now_or_never().is_none());
    let error = client.request("open.nobody", "?".into()).await.expect_err("nobody is there");
    assert_eq!(error.kind(), RequestErrorKind::NoResponders);
    stage.report(json!({"events": story.texts()}));
}
