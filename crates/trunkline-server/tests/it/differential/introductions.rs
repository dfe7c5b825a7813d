//! INFO, as JSON, with nats-server and here: which fields there are and what they say, in the first one and in the one behind
//! CONNECT, however the servers are set up. Where they are meant to differ is a list, each field with its reason.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Map, Value};
use trunkline_server::{Server, ServerOptions, WebSocketOptions};
use trunkline_testkit::NatsServer;

use super::super::auth::{auth, server_with};
use super::super::client::Raw;
use super::super::tls::{Sealed, Trust, info};
use super::super::websocket::{blocking, introduced};
use super::upgrades::web_address;

/// Fields that say something else on each server.
const OF_ITS_OWN: [&str; 6] = ["server_id", "server_name", "version", "port", "client_id", "nonce"];

/// Fields that are meant to differ, why, and in which setups; in all of them where none is named.
const MEANT: &[(&str, &str, &str)] = &[
    ("git_commit", "of the sources of nats-server", ""),
    ("go", "of the language that nats-server is written in", ""),
    ("xkey", "by which a service that decides who may connect seals its answers; there are none here", ""),
    ("api_lvl", "of JetStream, which there is not here", ""),
    (
        "auth_required",
        "with no_auth_user nobody has to say who they are, and INFO says so each time",
        "no_auth_user",
    ),
];

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    Tls,
    Web,
}

struct Setup {
    name: &'static str,
    theirs: &'static str,
    /// The section `server` of ours.
    ours: &'static str,
    way: Way,
    /// TLS is offered, and not asked for.
    optional: bool,
    fields: &'static str,
}

const fn setup(name: &'static str, theirs: &'static str, ours: &'static str, fields: &'static str) -> Setup {
    Setup { name, theirs, ours, way: Way::Plain, optional: false, fields }
}

const ANN: &str = r#""user":"ann","pass":"a""#;
const USERS: (&str, &str) =
    ("authorization { users: [{user: ann, password: a}] }\n", "{users: [{user: ann, password: a}]}");
const NO_AUTH_USER: (&str, &str) = (
    "authorization { users: [{user: ann, password: a}] }\nno_auth_user: ann\n",
    "{users: [{user: ann, password: a}], auth: {no_auth_user: ann}}",
);

const SETUPS: &[Setup] = &[
    setup("nobody is asked", "", "{}", ""),
    setup("token", "authorization { token: t }\n", "{auth: {token: t}}", r#""auth_token":"t""#),
    setup("users", USERS.0, USERS.1, ANN),
    setup(
        "accounts",
        "accounts { east { users: [{user: ann, password: a}] } }\n",
        "{accounts: {east: {users: [{user: ann, password: a}]}}}",
        ANN,
    ),
    setup(
        "nkeys",
        "authorization { users: [{nkey: UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4}, {user: ann, password: a}] }\n",
        "{users: [{nkey: UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4}, {user: ann, password: a}]}",
        ANN,
    ),
    setup("no_auth_user", NO_AUTH_USER.0, NO_AUTH_USER.1, ""),
    Setup { way: Way::Tls, ..setup("tls", "", "{}", "") },
    Setup { way: Way::Tls, ..setup("tls and users", USERS.0, USERS.1, ANN) },
    Setup { way: Way::Tls, optional: true, ..setup("tls, if it is wanted", "", "{}", "") },
    Setup { way: Way::Web, ..setup("ws", "", "{}", "") },
    Setup { way: Way::Web, ..setup("ws and users", USERS.0, USERS.1, ANN) },
    Setup { way: Way::Web, ..setup("ws and no_auth_user", NO_AUTH_USER.0, NO_AUTH_USER.1, "") },
];

/// Where a server is found, for clients on TCP and on WebSocket.
struct Place {
    nats: SocketAddr,
    web: Option<SocketAddr>,
}

fn their_config(setup: &Setup, trust: &Trust) -> String {
    let mut config = setup.theirs.to_owned();
    match setup.way {
        Way::Plain => {}
        Way::Web => config.push_str("websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n"),
        Way::Tls => {
            let (certificate, key) = (trust.server.cert_file.display(), trust.server.key_file.display());
            config.push_str(&format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" }}\n"));
            config.push_str(&format!("allow_non_tls: {}\n", setup.optional));
        }
    }
    config
}

fn their_place(setup: &Setup, server: &NatsServer) -> Place {
    let nats = SocketAddr::from(([127, 0, 0, 1], server.port()));
    Place { nats, web: (setup.way == Way::Web).then(|| web_address(server)) }
}

async fn our_server(setup: &Setup, trust: &Trust) -> Server {
    server_with(|options: &mut ServerOptions| {
        options.auth = auth(setup.ours);
        match setup.way {
            Way::Plain => {}
            Way::Web => options.websocket = Some(WebSocketOptions::at(([127, 0, 0, 1], 0).into())),
            Way::Tls => {
                let mut tls = trust.options();
                tls.allow_non_tls = setup.optional;
                options.tls = Some(tls);
            }
        }
    })
    .await
}

/// The first INFO and the second.
async fn introduction(setup: &Setup, place: &Place, trust: &Trust) -> [Map<String, Value>; 2] {
    let comma = if setup.fields.is_empty() { "" } else { "," };
    let hello = format!("CONNECT {{\"verbose\":false,\"protocol\":1{comma}{}}}\r\nPING\r\n", setup.fields);
    let lines = match setup.way {
        Way::Plain => {
            let mut raw = Raw::without_info(place.nats).await;
            let first = raw.line().await;
            raw.send(hello).await;
            raw.expect("PONG\r\n").await;
            [first, raw.line().await]
        }
        Way::Tls => {
            let first = format!("INFO {}", info(place.nats).await);
            let mut sealed = Sealed::connect(place.nats, trust.client(None)).await.expect("a handshake");
            sealed.send(hello).await;
            assert_eq!(sealed.line().await.as_deref(), Some("PONG"));
            [first, sealed.line().await.expect("an INFO")]
        }
        Way::Web => {
            let address = place.web.expect("it was asked for");
            blocking(move || introduced(address, hello)).await
        }
    };
    lines.map(|line| serde_json::from_str(line.strip_prefix("INFO ").expect(&line)).expect("an object"))
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_introduce_themselves_alike() {
    let trust = Trust::make();
    let (mut wrong, mut met) = (Vec::new(), BTreeSet::new());
    for setup in SETUPS {
        let theirs = NatsServer::start_with_config(&their_config(setup, &trust));
        let ours = our_server(setup, &trust).await;
        let there = introduction(setup, &their_place(setup, &theirs), &trust).await;
        let here = Place { nats: ours.nats_addr(), web: ours.websocket_addr() };
        let here = introduction(setup, &here, &trust).await;
        for (which, (there, here)) in ["first", "second"].into_iter().zip(there.iter().zip(&here)) {
            let names: BTreeSet<&String> = there.keys().chain(here.keys()).collect();
            for name in names {
                let (there, here) = (there.get(name), here.get(name));
                let is_alike = match OF_ITS_OWN.contains(&&name[..]) {
                    true => there.is_some() == here.is_some(),
                    false => there == here,
                };
                let is_meant =
                    |(field, _, only): &&(&str, &str, &str)| field == name && setup.name.contains(only);
                match MEANT.iter().find(is_meant) {
                    _ if is_alike => {}
                    Some(meant) => drop(met.insert(meant.0)),
                    None => wrong
                        .push(format!("{}, {which}: {name} is {there:?} there, {here:?} here", setup.name)),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let stale: Vec<_> = MEANT.iter().filter(|meant| !met.contains(meant.0)).collect();
    assert!(stale.is_empty() && MEANT.iter().all(|meant| !meant.1.is_empty()), "they are alike: {stale:?}");
}
