//! TLS and what it may fail with.

use trunkline::backend::redis::{RedisBackend, RedisConnectError, RedisOptions};
use trunkline::backend::{Backend, SubscribeOptions};
use trunkline_testkit::{Authority, RedisCluster, RedisServer};

use super::{next, options, publish, subscribe};

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

/// The nodes of a cluster are reached at the ports on which they speak TLS, as they themselves tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_a_cluster_are_reached_by_tls() {
    let authority = Authority::make();
    let certificate = authority.sign(&["127.0.0.1"]);
    let starting = tokio::task::spawn_blocking(move || {
        let cluster = RedisCluster::start_tls(&authority, &certificate);
        (authority, cluster)
    });
    let (authority, cluster) = starting.await.expect("the nodes start");
    let backend = RedisBackend::connect(trusting(&authority, &cluster.tls_url())).await.unwrap();
    let mut all = subscribe(&backend, "nachos.>", SubscribeOptions::default()).await;
    for family in ["tool", "llm", "audit", "system", "channel", "skill"] {
        publish(&backend, &format!("nachos.{family}.x"), family).await.unwrap();
        assert_eq!(next(&mut *all).await, family);
    }
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
