//! Who is let in, and what those are told who are not.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::Value;

use super::super::client::{Raw, json, within};
use super::{VIOLATION, answer, auth, client, connect, server, server_with, user};

/// A hash at the lowest cost there is, so that tests without optimisation are not slow.
fn bcrypt(password: &str) -> String {
    bcrypt::hash(password, 4).expect("short enough")
}

fn argon2(password: &str) -> String {
    use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
    let params = Params::new(8, 1, 1, None).expect("valid");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password(password.as_bytes()).expect("a hash").to_string()
}

async fn info(address: std::net::SocketAddr) -> (Raw, Value) {
    let mut raw = Raw::without_info(address).await;
    let line = raw.line().await;
    let json = line.strip_prefix("INFO ").unwrap_or_else(|| panic!("{line}"));
    (raw, serde_json::from_str(json).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_come_in_with_their_password_in_any_form() {
    let yaml = format!(
        "{{users: [{{user: ann, password: plain}}, {{user: bob, password: '{}'}}, {{user: cyd, password: '{}'}}]}}",
        bcrypt("hash-b"),
        argon2("hash-a")
    );
    let server = server(&yaml).await;
    let address = server.nats_addr();
    for (name, password) in [("ann", "plain"), ("bob", "hash-b"), ("cyd", "hash-a")] {
        // The second time the server knows the password of a hash.
        for _ in 0..2 {
            assert_eq!(answer(address, &user(name, password)).await, "PONG\r\n", "{name}");
        }
        for wrong in ["", "hash", "hash-c", &bcrypt(password)] {
            assert_eq!(answer(address, &user(name, wrong)).await, VIOLATION, "{name} with {wrong}");
        }
        assert_eq!(answer(address, &user(name, password)).await, "PONG\r\n", "{name} after failures");
    }
    for stranger in [user("nobody", "plain"), String::new(), "\"auth_token\":\"plain\"".to_owned()] {
        assert_eq!(answer(address, &stranger).await, VIOLATION, "{stranger}");
    }
    let varz = json(server.http_addr().expect("served"), "/varz").await;
    assert_eq!((varz["auth_failures"].as_u64(), varz["auth_required"].as_bool()), (Some(15), Some(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_in_any_form() {
    for token in ["s3cret", &bcrypt("s3cret")] {
        let server = server(&format!("{{auth: {{token: '{token}'}}}}")).await;
        let address = server.nats_addr();
        assert_eq!(answer(address, "\"auth_token\":\"s3cret\"").await, "PONG\r\n");
        for wrong in ["", "s3cre", "s3cret1"] {
            assert_eq!(answer(address, &format!("\"auth_token\":\"{wrong}\"")).await, VIOLATION, "{wrong}");
        }
        assert_eq!(answer(address, &user("x", "s3cret")).await, VIOLATION);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nkey_signs_the_nonce_of_its_connection() {
    let (pair, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let server = server(&format!("{{users: [{{nkey: {}}}]}}", pair.public_key())).await;
    let address = server.nats_addr();
    let signed = |key: &KeyPair, nonce: &str, public: &str, standard: bool| {
        let signature = key.sign(nonce.as_bytes()).expect("it has a seed");
        let text = if standard { STANDARD.encode(signature) } else { URL_SAFE_NO_PAD.encode(signature) };
        format!("\"nkey\":\"{public}\",\"sig\":\"{text}\"")
    };
    let (_, first) = info(address).await;
    let old_nonce = first["nonce"].as_str().expect("nkeys are in use").to_owned();
    assert_eq!((first["auth_required"].as_bool(), old_nonce.len()), (Some(true), 15));
    for (what, good) in
        [("right", true), ("standard base64", true), ("other key", false), ("other nonce", false)]
    {
        let (mut raw, info) = info(address).await;
        let nonce = info["nonce"].as_str().expect("nkeys are in use");
        let public = pair.public_key();
        let fields = match what {
            "right" => signed(&pair, nonce, &public, false),
            "standard base64" => signed(&pair, nonce, &public, true),
            "other key" => signed(&stranger, nonce, &public, false),
            _ => signed(&pair, &old_nonce, &public, false),
        };
        raw.send(format!("{}PING\r\n", connect(&fields))).await;
        match good {
            true => raw.expect("PONG\r\n").await,
            false => assert_eq!(raw.until_closed().await, VIOLATION, "{what}"),
        }
    }
    for bad in ["", "\"sig\":\"\"", "\"sig\":\"AAAA\"", "\"sig\":\"%%%\""] {
        let comma = if bad.is_empty() { "" } else { "," };
        let fields = format!("\"nkey\":\"{}\"{comma}{bad}", pair.public_key());
        assert_eq!(answer(address, &fields).await, VIOLATION, "{bad}");
    }
    let own = signed(&stranger, &old_nonce, &stranger.public_key(), false);
    assert_eq!(answer(address, &own).await, VIOLATION, "nobody's key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_before_connect_closes_the_connection() {
    let server = server("{users: [{user: ann, password: a}]}").await;
    for garbage in [
        "PING\r\n",
        "PUB a 1\r\nx\r\n",
        "SUB > 1\r\n",
        "garbage\r\n",
        "\r\n",
        "\u{0}\u{1}",
        "GET / HTTP/1.1\r\n\r\n",
        "{\"user\":\"ann\"}",
    ] {
        let mut raw = Raw::connect(server.nats_addr()).await;
        raw.send(garbage).await;
        assert_eq!(raw.until_closed().await, VIOLATION, "{garbage:?}");
    }
    for (connect, told) in [
        ("CONNECT {\"user\":5}\r\n", "-ERR 'Parser Error'\r\n"),
        ("CONNECT nonsense\r\n", "-ERR 'Parser Error'\r\n"),
        ("CONQUER {}\r\n", "-ERR 'Unknown Protocol Operation'\r\n"),
        ("CONNECT {\"user\":\"\",\"pass\":\"\"}\r\n", VIOLATION),
        ("CONNECT {\"user\":null}\r\n", VIOLATION),
    ] {
        let mut raw = Raw::connect(server.nats_addr()).await;
        raw.send(connect).await;
        assert_eq!(raw.until_closed().await, told, "{connect:?}");
    }
    let mut long = Raw::connect(server.nats_addr()).await;
    let _ = long.try_send(format!("CONNECT {{\"user\":\"{}", "x".repeat(8000)).as_bytes()).await;
    assert_eq!(long.until_closed().await, "-ERR 'maximum control line exceeded'\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_has_to_say_who_they_are_they_have_to_say_something() {
    let server = server_with(|options| {
        options.auth = auth("{users: [{user: ann, password: a}]}");
        options.auth.no_auth_user = Some("ann".to_owned());
        options.auth.timeout = Duration::from_millis(300);
    })
    .await;
    let (mut silent, mut brief) =
        (Raw::connect(server.nats_addr()).await, Raw::connect(server.nats_addr()).await);
    // No CONNECT, as on nats-server; without one every operation is acknowledged.
    brief.send("SUB a 1\r\n").await;
    brief.expect("+OK\r\n").await;
    assert_eq!(silent.until_closed().await, "-ERR 'Authentication Timeout'\r\n");
    brief.send("PING\r\n").await;
    brief.expect("PONG\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_sent_away_in_time_and_others_stay() {
    let server = server_with(|options| {
        options.auth = auth("{users: [{user: ann, password: a}]}");
        options.auth.timeout = Duration::from_millis(300);
    })
    .await;
    let mut known = client(server.nats_addr(), "ann", "a").await;
    let (mut silent, mut slow) =
        (Raw::connect(server.nats_addr()).await, Raw::connect(server.nats_addr()).await);
    slow.send("CONNECT {\"user\":").await;
    for raw in [&mut silent, &mut slow] {
        assert_eq!(raw.until_closed().await, "-ERR 'Authentication Timeout'\r\n");
    }
    assert_eq!(known.flush().await, "", "who is in stays");
    let http = server.http_addr().expect("served");
    drop((silent, slow));
    let timed_out = async {
        let is_one = |row: &&Value| row["reason"] == "Authentication Timeout";
        // Every look is a round trip.
        while {
            let closed = json(http, "/connz?state=closed&auth=1").await;
            closed["connections"].as_array().expect("a list").iter().filter(is_one).count() < 2
        } {}
    };
    within("two connections that are shown as timed out", timed_out).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_connect_waits_for_the_password_and_keeps_its_order() {
    let yaml = format!("{{users: [{{user: ann, password: '{}'}}]}}", bcrypt("a"));
    let server = server(&yaml).await;
    let mut raw = Raw::connect(server.nats_addr()).await;
    let messages: String = (0..1000).map(|n| format!("PUB a {}\r\n{n}\r\n", n.to_string().len())).collect();
    raw.send(format!("CONNECT {{\"user\":\"ann\",\"pass\":\"a\"}}\r\nSUB a 1\r\n{messages}PING\r\n")).await;
    // Verbose by default: each operation is confirmed, the first of them the CONNECT.
    let (mut confirmed, mut got) = (0, Vec::new());
    loop {
        match raw.line().await.as_str() {
            "+OK" => confirmed += 1,
            "PONG" => break,
            line if line.starts_with("MSG") => got.push(raw.line().await),
            other => panic!("{other}"),
        }
    }
    let expected: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    assert_eq!((confirmed, got), (1002, expected));
    let mut raw = Raw::connect(server.nats_addr()).await;
    raw.send(format!("{}PUB a 1\r\nx\r\n", connect(&user("ann", "wrong")))).await;
    assert_eq!(raw.until_closed().await, VIOLATION);
    let varz = json(server.http_addr().expect("served"), "/varz").await;
    assert_eq!(varz["in_msgs"], 1000, "nothing of a stranger is carried out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_without_credentials_may_be_taken_for_a_user() {
    let server = server(
        "{auth: {no_auth_user: guest}, users: [{user: guest, password: g, permissions: {publish: [open]}}, \
         {user: ann, password: a}]}",
    )
    .await;
    let (_, info) = info(server.nats_addr()).await;
    assert_eq!(info.get("auth_required"), None, "nobody has to say who they are");
    let denied = "-ERR 'Permissions Violation for Publish to \"closed\"'\r\n";
    let mut guest = Raw::ready(server.nats_addr(), "").await;
    guest.send("PUB open 0\r\n\r\nPUB closed 0\r\n\r\n").await;
    assert_eq!(guest.flush().await, denied);
    let mut silent = Raw::connect(server.nats_addr()).await;
    silent.send("PUB closed 0\r\n\r\n").await;
    // Without CONNECT a client is verbose.
    silent.expect(denied).await;
    let mut ann = client(server.nats_addr(), "ann", "a").await;
    ann.send("PUB closed 0\r\n\r\n").await;
    assert_eq!(ann.flush().await, "");
    assert_eq!(answer(server.nats_addr(), &user("guest", "wrong")).await, VIOLATION);
    let http = server.http_addr().expect("served");
    let page = json(http, "/connz?auth=1").await;
    let users: Vec<_> =
        page["connections"].as_array().expect("a list").iter().map(|c| &c["authorized_user"]).collect();
    assert!(users.contains(&&Value::from("guest")) && users.contains(&&Value::from("ann")), "{page}");
    let page = json(http, "/connz").await;
    assert!(page["connections"][0].get("authorized_user").is_none(), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_is_asked_the_default_permissions_are_everybodys() {
    let server = server("{permissions: {publish: [open], subscribe: {deny: [closed]}}}").await;
    let mut anybody = Raw::ready(server.nats_addr(), &user("any", "thing")).await;
    anybody.send("PUB open 0\r\n\r\nPUB closed 0\r\n\r\nSUB closed 1\r\nSUB open 2\r\n").await;
    let denied = "-ERR 'Permissions Violation for Publish to \"closed\"'\r\n\
                  -ERR 'Permissions Violation for Subscription to \"closed\"'\r\n";
    assert_eq!(anybody.flush().await, denied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_are_limited_for_each_user_and_address() {
    let yaml = format!(
        "{{users: [{{user: ann, password: right}}, {{user: bob, password: '{}'}}, {{user: cyd, password: c}}]}}",
        bcrypt("right")
    );
    let server = server_with(|options| {
        options.auth = auth(&yaml);
        options.auth.failures_max = Some(3);
    })
    .await;
    let address = server.nats_addr();
    for name in ["ann", "bob"] {
        assert_eq!(answer(address, &user(name, "right")).await, "PONG\r\n");
        for n in 0..3 {
            assert_eq!(answer(address, &user(name, &format!("guess {n}"))).await, VIOLATION);
        }
        assert_eq!(answer(address, &user(name, "right")).await, VIOLATION, "{name}: not even the right one");
    }
    assert_eq!(answer(address, &user("cyd", "c")).await, "PONG\r\n", "others are not affected");
    let metrics = super::super::client::get(server.http_addr().expect("served"), "/metrics").await.body;
    for line in [
        "trunkline_server_auth_failures_total{reason=\"credentials\"} 6",
        "trunkline_server_auth_failures_total{reason=\"too_many\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guess_counts_for_the_user_whose_password_was_checked() {
    let server = server_with(|options| {
        options.auth = auth("{users: [{user: ann, password: right}]}");
        options.auth.failures_max = Some(3);
    })
    .await;
    let address = server.nats_addr();
    // Nobody has an nkey here, so that nobody looks at one: it is no name to guess under.
    for n in 0..3 {
        let guess = format!("\"nkey\":\"U{n}\",{}", user("ann", &format!("guess {n}")));
        assert_eq!(answer(address, &guess).await, VIOLATION);
    }
    assert_eq!(answer(address, &format!("\"nkey\":\"U4\",{}", user("ann", "right"))).await, VIOLATION);
    let metrics = super::super::client::get(server.http_addr().expect("served"), "/metrics").await.body;
    assert!(metrics.contains("auth_failures_total{reason=\"too_many\"} 1"), "{metrics}");
    let closed = json(server.http_addr().expect("served"), "/connz?state=closed&auth=1").await;
    for connection in closed["connections"].as_array().expect("a list") {
        assert_eq!(connection["authorized_user"], "ann", "{closed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_right_for_somebody_else_is_a_failure_for_a_name_that_nobody_has() {
    // Hers is looked at for those names, for the sake of time.
    let yaml = format!("{{users: [{{user: ann, password: '{}'}}]}}", bcrypt("right"));
    let server = server_with(|options| {
        options.auth = auth(&yaml);
        options.auth.failures_max = Some(3);
    })
    .await;
    for _ in 0..4 {
        assert_eq!(answer(server.nats_addr(), &user("nobody", "right")).await, VIOLATION);
    }
    let metrics = super::super::client::get(server.http_addr().expect("served"), "/metrics").await.body;
    for line in ["reason=\"credentials\"} 3", "reason=\"too_many\"} 1"] {
        assert!(metrics.contains(&format!("auth_failures_total{{{line}")), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_token_that_somebody_has_made_up_cannot_be_guessed_at_leisure() {
    let start = async |configured: Option<&str>| {
        server_with(|options| {
            options.admin_token = configured.map(trunkline::config::Secret::new);
            options.auth.failures_max = Some(3);
        })
        .await
    };
    let status = async |address: std::net::SocketAddr, token: &str| {
        let request = format!(
            "GET /api/v1/server HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        super::super::client::http(address, &request).await.status
    };
    let server = start(Some("letmein")).await;
    let address = server.http_addr().expect("served");
    assert_eq!(status(address, "letmein").await, 200);
    for n in 0..3 {
        assert_eq!(status(address, &format!("guess{n}")).await, 401);
    }
    assert_eq!(status(address, "letmein").await, 401, "not even the right one");
    let metrics = super::super::client::get(address, "/metrics").await.body;
    for line in [
        "trunkline_http_refused_requests_total{reason=\"credentials\"} 3",
        "trunkline_http_refused_requests_total{reason=\"too_many\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    // One that the server has made is beyond guessing, and whoever has it is not to be locked out by those who have not.
    let server = start(None).await;
    let address = server.http_addr().expect("served");
    for n in 0..8 {
        assert_eq!(status(address, &format!("guess{n}")).await, 401);
    }
    assert_eq!(status(address, server.admin_token()).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_requests_to_the_admin_api_wait_for_a_hash_and_the_others_are_sent_away() {
    let hash = bcrypt::hash("a", 8).expect("short enough");
    let yaml = format!("{{users: [{{user: ann, password: '{hash}', admin: true}}]}}");
    let server = server(&yaml).await;
    let address = server.http_addr().expect("served");
    // All of them are there before the first is answered, as far as a machine can do that with so many.
    let asking: Vec<_> = (0..200)
        .map(|n| {
            let given = STANDARD.encode(format!("stranger {n}:x"));
            let request = format!(
                "GET /api/v1/server HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Basic {given}\r\n\r\n"
            );
            tokio::spawn(async move { super::super::client::http(address, &request).await })
        })
        .collect();
    let mut sent_away = 0;
    for answer in asking {
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status, 401, "{answer:?}");
        sent_away += usize::from(answer.body.contains("too many passwords are being checked"));
    }
    assert!(sent_away > 0, "all of them waited for a hash");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_of_one_user_come_at_once_without_being_taken_for_guessers() {
    let yaml = format!("{{users: [{{user: ann, password: '{}'}}]}}", bcrypt("a"));
    let server = server_with(|options| {
        options.auth = auth(&yaml);
        options.auth.failures_max = Some(3);
    })
    .await;
    let address = server.nats_addr();
    let coming = (0..60).map(|_| tokio::spawn(async move { answer(address, &user("ann", "a")).await }));
    for answered in coming.collect::<Vec<_>>() {
        assert_eq!(answered.await.expect("an answer"), "PONG\r\n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_api_opens_to_users_that_are_allowed_to() {
    let yaml = format!(
        "{{users: [{{user: ann, password: a}}, {{user: boss, password: '{}', admin: true}}], \
         accounts: {{east: {{users: [{{user: amy, password: a}}]}}}}}}",
        bcrypt("b:b")
    );
    let server = server_with(|options| {
        options.auth = auth(&yaml);
        // No configuration can say so, and an application can.
        options.auth.accounts.values_mut().flatten().for_each(|user| user.admin = true);
    })
    .await;
    let address = server.http_addr().expect("served");
    for (given, status) in [
        (format!("Bearer {}", server.admin_token()), 200),
        (format!("Basic {}", STANDARD.encode("boss:b:b")), 200),
        (format!("basic {}", STANDARD.encode("boss:b:b")), 200),
        (format!("Basic {}", STANDARD.encode("boss:b")), 401),
        (format!("Basic {}", STANDARD.encode("ann:a")), 403),
        // The API is about the global account.
        (format!("Basic {}", STANDARD.encode("amy:a")), 403),
        (format!("Basic {}", STANDARD.encode("nobody:a")), 401),
        (format!("Basic {}", STANDARD.encode(":")), 401),
        ("Basic %%%".to_owned(), 401),
    ] {
        let request = format!(
            "GET /api/v1/server HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: {given}\r\n\r\n"
        );
        let answer = super::super::client::http(address, &request).await;
        assert_eq!(answer.status, status, "{given}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_may_say_once_more_who_it_is() {
    let server =
        server("{users: [{user: ann, password: a}, {user: bob, password: b, permissions: {publish: []}}]}")
            .await;
    let mut raw = client(server.nats_addr(), "ann", "a").await;
    raw.send("PUB x 0\r\n\r\n").await;
    assert_eq!(raw.flush().await, "");
    raw.send(format!("{}PUB x 0\r\n\r\n", connect(&user("bob", "b")))).await;
    assert_eq!(raw.flush().await, "-ERR 'Permissions Violation for Publish to \"x\"'\r\n");
    raw.send(connect(&user("ann", "wrong"))).await;
    assert_eq!(raw.until_closed().await, VIOLATION);
}
