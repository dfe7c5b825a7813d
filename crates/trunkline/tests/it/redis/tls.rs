//! TLS and what it may fail with.
//!
//! Most of it is about the system's server; that the others do the same is seen where they were built with TLS.

use trunkline::backend::redis::{RedisBackend, RedisConnectError, RedisOptions};
use trunkline::backend::{Backend, SubscribeOptions};
use trunkline_testkit::{Authority, NoTls, RedisCluster, RedisSentinels, RedisServer, RedisVersion};

use super::sentinel::goes_on_after_a_failover;
use super::{next, on_oldest_and_newest, options, publish, subscribe};

fn trusting(authority: &Authority, url: &str) -> RedisOptions {
    let mut options = options(url);
    options.tls.ca_file = Some(authority.ca_file());
    options
}

async fn refused(options: RedisOptions) -> String {
    let error = RedisBackend::connect(options).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::Tls { .. }) && !error.is_retryable(), "{error:?}");
    assert!(!error.hint().is_empty());
    error.to_string()
}

/// A server whose certificate a private authority has signed is trusted by who names that authority, and by nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_with_a_certificate_of_a_named_authority_is_trusted() {
    let authority = Authority::make();
    let server = RedisServer::start_tls(&authority, &authority.sign(&["127.0.0.1", "localhost"]), false);
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("rediss://{host}:{}/2", server.port());
        let backend = RedisBackend::connect(trusting(&authority, &url)).await.unwrap();
        let mut source = subscribe(&backend, "nachos.tool.>", SubscribeOptions::default()).await;
        publish(&backend, "nachos.tool.x", host).await.unwrap();
        assert_eq!(next(&mut *source).await, host);
        assert_eq!(backend.status().borrow().server, url);
    }
    let text = refused(options(server.url())).await;
    assert!(text.contains("UnknownIssuer"), "{text}");
    let other = Authority::make();
    let text = refused(trusting(&other, server.url())).await;
    assert!(text.contains("messaging.redis_tls"), "{text}");
}

/// A certificate for another name is no certificate, however well it is signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_for_another_name_is_refused() {
    let authority = Authority::make();
    let server = RedisServer::start_tls(&authority, &authority.sign(&["redis.example"]), false);
    let text = refused(trusting(&authority, server.url())).await;
    assert!(text.contains("not valid for name"), "{text}");
}

/// A server that wants a certificate of its clients gets ours; without one the error says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_is_shown_to_a_server_that_wants_one() {
    let authority = Authority::make();
    let server = RedisServer::start_tls(&authority, &authority.sign(&["127.0.0.1"]), true);
    let text = refused(trusting(&authority, server.url())).await;
    assert!(text.contains("CertificateRequired") || text.contains("HandshakeFailure"), "{text}");

    let with = |signer: &Authority| {
        let own = signer.sign(&["component"]);
        let mut options = trusting(&authority, server.url());
        options.tls.cert_file = Some(own.cert_file);
        options.tls.key_file = Some(own.key_file);
        options
    };
    let stranger = Authority::make();
    refused(with(&stranger)).await;
    let backend = RedisBackend::connect(with(&authority)).await.unwrap();
    publish(&backend, "nachos.tool.x", 1).await.unwrap();
}

on_oldest_and_newest! {
    servers_of_all_kinds_are_reached_by_tls;
}

/// One server, the nodes of a cluster, and sentinels with the servers that they watch, through a failover.
async fn servers_of_all_kinds_are_reached_by_tls(version: RedisVersion) {
    match reached_by_tls(version).await {
        Ok(()) => {}
        // What `setup` installs of the other versions has none, which the page for operators says.
        Err(no_tls) if version != RedisVersion::System => no_tls.tell(),
        Err(no_tls) => panic!("{no_tls}"),
    }
}

async fn reached_by_tls(version: RedisVersion) -> Result<(), NoTls> {
    let authority = Authority::make();
    let certificate = authority.sign(&["127.0.0.1"]);
    let server = RedisServer::start_tls_version(version, &authority, &certificate, false)?;
    go_round(trusting(&authority, server.url())).await;
    // Nodes are reached at the ports on which they speak TLS, as they themselves tell.
    let cluster = RedisCluster::start_tls(version, &authority, &certificate)?;
    go_round(trusting(&authority, &cluster.tls_url())).await;
    let sentinels = RedisSentinels::start_tls(version, &authority, &certificate)?;
    let options = trusting(&authority, &sentinels.url());
    goes_on_after_a_failover(sentinels, options).await;
    Ok(())
}

/// Publishes to each family, and sees it.
async fn go_round(options: RedisOptions) {
    let backend = RedisBackend::connect(options).await.unwrap();
    let mut all = subscribe(&backend, "nachos.>", SubscribeOptions::default()).await;
    for family in ["tool", "llm", "audit", "system", "channel", "skill"] {
        publish(&backend, &format!("nachos.{family}.x"), family).await.unwrap();
        assert_eq!(next(&mut *all).await, family);
    }
}

/// Sentinels are trusted by their certificates as servers are, and not without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_with_certificates_of_strangers_are_refused() {
    let authority = Authority::make();
    let certificate = authority.sign(&["127.0.0.1"]);
    let sentinels =
        RedisSentinels::start_tls(RedisVersion::System, &authority, &certificate).expect("it has TLS");
    let stranger = Authority::make();
    let text = refused(trusting(&stranger, &sentinels.url())).await;
    assert!(text.contains("UnknownIssuer") || text.contains("BadSignature"), "{text}");
    // The ports that speak TLS speak nothing else.
    let plain = sentinels.url().replace("rediss-", "redis-");
    let error = RedisBackend::connect(options(&plain)).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::Unreachable { .. }), "{error:?}");
}

/// A server that speaks no TLS says nothing at all; the error asks the right question.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_to_a_server_without_it_is_told() {
    let server = RedisServer::start_volatile();
    let url = format!("rediss://127.0.0.1:{}", server.port());
    let error = RedisBackend::connect(options(&url)).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("does it speak TLS"), "{error}");
}

/// Files that cannot be used fail at once, with the setting that names them.
#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let mut options = options("rediss://127.0.0.1:1");
    options.tls.ca_file = Some("/nowhere/ca.pem".into());
    let error = RedisBackend::connect(options).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::TlsFiles { .. }) && !error.is_retryable(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("/nowhere/ca.pem") && text.contains("messaging.redis_tls.ca_file"), "{text}");
}
