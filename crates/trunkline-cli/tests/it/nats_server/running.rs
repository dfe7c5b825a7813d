//! A running server: its log, its files, its addresses, and what signals change.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::command::{Running, start, text};

use super::{Place, address_in, theirs};

/// What stands in a log behind process and time, with the numbers of ports and the ids of servers left out.
pub(super) fn told(log: &str) -> Vec<String> {
    let text = log.lines().filter_map(|line| line.split_once("] ")?.1.split_once(" [")?.1.split_once("] "));
    text.map(|(level, text)| {
        let text: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        format!("[{level}] {text}")
    })
    .collect()
}

fn run_until_ready(place: &Place, program: &Path, name: &str) -> Running {
    let (log, pid) = (format!("{name}.log"), format!("{name}.pid"));
    let arguments = ["-p", "-1", "-a", "127.0.0.1", "-m", "-1", "-l", &log, "-P", &pid];
    let mut command = place.command(program, &arguments);
    command.arg("--ports_file_dir").arg(place.path());
    let running = start(command, b"");
    let file = wait_for(|| {
        let pid = std::fs::read_to_string(place.path().join(&pid)).ok()?;
        let ports = std::fs::read_to_string(place.path().join(format!("nats-server_{pid}.ports"))).ok()?;
        serde_json::from_str::<Value>(&ports).ok()
    });
    for (list, scheme) in [("nats", "nats://127.0.0.1:"), ("monitoring", "http://127.0.0.1:")] {
        let url = file[list][0].as_str().unwrap_or_default();
        assert!(url.starts_with(scheme), "{name}: {file}");
    }
    assert_eq!(file.as_object().map(serde_json::Map::len), Some(2), "{name}: {file}");
    wait_for(|| place.read(&log).contains("Server is ready").then_some(()));
    running
}

/// Looks again and again, as a file cannot be awaited.
#[track_caller]
pub(super) fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + crate::command::PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "it never came to be");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn clients_are_told_the_address_that_is_advertised() {
    let place = Place::new();
    place.write("server.conf", "listen: \"127.0.0.1:-1\"\nclient_advertise: \"bus.example.org:4333\"");
    for (arguments, host, port) in [
        (&["-c", "server.conf"][..], "bus.example.org", Some(4333)),
        (&["-c", "server.conf", "--client_advertise", "10.1.2.3"], "10.1.2.3", None),
    ] {
        for program in [place.ours(), theirs()] {
            let mut running = start(place.command(&program, arguments), b"");
            let address = address_in(&running.until_it_says("Listening for client connections on "));
            let stream = std::net::TcpStream::connect(&address).expect("it listens");
            let mut line = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line).expect("INFO");
            let info: Value = serde_json::from_str(line.trim_start_matches("INFO ")).expect("JSON");
            let own = address.rsplit(':').next().and_then(|port| port.parse().ok());
            assert_eq!((info["host"].as_str(), info["port"].as_u64()), (Some(host), port.or(own)), "{line}");
            running.signal(Signal::SIGTERM);
            assert_eq!(running.end().code(), 0);
        }
    }
}

#[test]
fn log_files_and_exit_codes_are_those_of_nats_server() {
    let place = Place::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let [ours, theirs] = [("ours", place.ours()), ("theirs", theirs())].map(|(name, program)| {
            let _ = std::fs::remove_file(place.path().join(format!("{name}.log")));
            let _ = std::fs::remove_file(place.path().join(format!("{name}.pid")));
            let running = run_until_ready(&place, &program, name);
            running.signal(signal);
            let ended = running.end();
            (ended.code(), told(&place.read(&format!("{name}.log"))))
        });
        assert_eq!(ours.0, theirs.0, "{signal}");
        let lines = [
            "[INF] Starting nats-server",
            "[INF] Starting http monitor on ...:",
            "[INF] Listening for client connections on ...:",
            "[INF] Server is ready",
            "[INF] Initiating Shutdown...",
            "[INF] Server Exiting..",
        ];
        for (who, log) in [("ours", &ours.1), ("theirs", &theirs.1)] {
            let found: Vec<_> = log.iter().filter(|line| lines.contains(&line.as_str())).collect();
            assert_eq!(found, lines.iter().collect::<Vec<_>>(), "{who}: {log:#?}");
        }
        let trapped = |log: &[String]| log.iter().find(|line| line.contains("Trapped")).cloned();
        assert_eq!(trapped(&ours.1), trapped(&theirs.1));
        let left = std::fs::read_dir(place.path()).expect("it is there").flatten();
        let ports = left.filter(|entry| entry.path().extension().is_some_and(|end| end == "ports"));
        assert_eq!(ports.count(), 0, "the ports files are gone with the servers");
    }
}

#[test]
fn files_that_cannot_be_written_are_told_as_by_nats_server() {
    let place = Place::new();
    for program in [place.ours(), theirs()] {
        let arguments = ["-p", "-1", "-a", "127.0.0.1", "-P", "missing/x.pid"];
        let ended = start(place.command(&program, &arguments), b"").end();
        let fatal = "[FTL] Could not write pidfile: open missing/x.pid: no such file or directory";
        assert!(ended.code() == 1 && ended.stderr.contains(fatal), "{}", ended.stderr);
        let arguments = ["-p", "-1", "-a", "127.0.0.1", "-l", "missing/x.log"];
        let ended = start(place.command(&program, &arguments), b"").end();
        let error = "error opening file: open missing/x.log: no such file or directory";
        assert!(ended.code() == 1 && ended.stderr.contains(error), "{}", ended.stderr);
        // Clients are served without it.
        let arguments = ["-p", "-1", "-a", "127.0.0.1", "--ports_file_dir", "missing"];
        let mut running = start(place.command(&program, &arguments), b"");
        running.until_it_says("[ERR] Error writing ports file (missing/nats-server_");
        running.signal(Signal::SIGTERM);
        assert_eq!(running.end().code(), 0);
        // What a script says whose variables are not set.
        let arguments =
            ["-c", "", "-p", "-1", "-a", "127.0.0.1", "-l", "", "-P", "", "--ports_file_dir", "", "-n", ""];
        let mut running = start(place.command(&program, &arguments), b"");
        running.until_it_says("Server is ready");
    }
}

#[test]
fn an_address_in_use_is_fatal_and_named() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    for program in [place.ours(), theirs()] {
        let ended = start(place.command(&program, &["-a", "127.0.0.1", "-p", &port]), b"").end();
        assert_eq!(ended.code(), 1);
        let expected = format!(
            "[FTL] Error listening on port: 127.0.0.1:{port}, \"listen tcp 127.0.0.1:{port}: bind: address already in use\""
        );
        assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
    }
}

#[test]
fn without_an_address_the_server_is_reached_from_this_machine_alone() {
    let place = Place::new();
    let mut running = start(place.command(&place.ours(), &["-p", "-1"]), b"");
    let line = running.until_it_says("Listening for client connections on ");
    assert!(address_in(&line).starts_with("127.0.0.1:"), "{line}");
    running.until_it_says("Server is ready");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code(), 0);
    let open = start(place.command(&place.ours(), &["-p", "-1", "-a", "0.0.0.0"]), b"").end();
    assert_eq!(open.code(), 1);
    assert!(open.stderr.contains("[FTL] ") && open.stderr.contains("no authentication"), "{}", open.stderr);
    let mut asked = start(place.command(&place.ours(), &["-p", "-1", "-a", "0.0.0.0", "--auth", "t"]), b"");
    asked.until_it_says("Listening for client connections on 0.0.0.0:");
}

#[test]
fn the_log_is_opened_again_where_its_name_leads_now() {
    let place = Place::new();
    let running = run_until_ready(&place, &place.ours(), "ours");
    std::fs::rename(place.path().join("ours.log"), place.path().join("old.log")).expect("it may be moved");
    let sent = start(place.command(&place.ours(), &["--signal", "reopen=ours.pid"]), b"").end();
    assert_eq!(sent.code(), 0, "{sent:?}");
    wait_for(|| {
        std::fs::read_to_string(place.path().join("ours.log")).ok().filter(|log| log.contains("re-opened"))
    });
    assert!(place.read("old.log").contains("Server is ready"));
    drop(running);
}

#[test]
fn several_servers_are_told_by_the_beginning_of_their_numbers() {
    let place = Place::new();
    let [first, second] = ["ours", "second"].map(|name| run_until_ready(&place, &place.ours(), name));
    let pids = ["ours", "second"].map(|name| place.read(&format!("{name}.pid")));
    for (pid, log) in pids.iter().zip(["ours.log", "second.log"]) {
        // All of it: the beginnings of others' numbers are not for a test to use.
        let sent = start(place.command(&place.ours(), &["--signal", &format!("reopen={pid}*")]), b"").end();
        assert_eq!(sent.code(), 0, "{sent:?}");
        wait_for(|| place.read(log).contains("re-opened").then_some(()));
    }
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_users_and_refuses_what_a_running_server_cannot_change() {
    let place = Place::new();
    let users = |password: &str| format!("authorization {{ users: [{{user: a, password: {password}}}] }}\n");
    place.write("server.conf", &users("first"));
    let arguments = ["-c", "server.conf", "-p", "-1", "-a", "127.0.0.1", "-P", "server.pid"];
    let mut running = start(place.command(&place.ours(), &arguments), b"");
    let url = address_in(&running.until_it_says("Listening for client connections on "));
    running.until_it_says("Server is ready");
    let connect = async |password: &str| {
        let options = async_nats::ConnectOptions::with_user_and_password("a".to_owned(), password.to_owned());
        options.connect(&url).await
    };
    let client = connect("first").await.expect("the first password is right");
    assert!(connect("second").await.is_err());

    place.write("server.conf", &users("second"));
    running.signal(Signal::SIGHUP);
    running.until_it_says("[INF] Reloaded server configuration (sha256:");
    connect("second").await.expect("the second password is right now");
    assert!(connect("first").await.is_err());
    drop(client);

    place.write("server.conf", &format!("server_name: other\n{}", users("third")));
    running.signal(Signal::SIGHUP);
    running.until_it_says(
        "Failed to reload server configuration: config reload not supported for ServerName: old=, new=other",
    );
    place.write("server.conf", "authorization {");
    running.signal(Signal::SIGHUP);
    running.until_it_says("Failed to reload server configuration: Parse error on line 1");
    connect("second").await.expect("users are as they were");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_shows_operations_once_it_is_asked_for_and_no_secret() {
    let place = Place::new();
    let config = |trace: bool| format!("trace: {trace}\nauthorization {{ token: s3cret }}\n");
    place.write("server.conf", &config(false));
    let arguments = ["-c", text(Path::new("server.conf")), "-p", "-1"];
    let mut running = start(place.command(&place.ours(), &arguments), b"");
    let url = address_in(&running.until_it_says("Listening for client connections on "));
    running.until_it_says("Server is ready");
    let connect = || async_nats::ConnectOptions::with_token("s3cret".to_owned()).connect(&url);
    let client = connect().await.expect("the token is right");
    let _unseen = client.subscribe("unseen").await.expect("it is taken");
    // The answer says that the server has read all before it.
    client.request("nobody", "".into()).await.expect_err("nobody is there");

    place.write("server.conf", &config(true));
    running.signal(Signal::SIGHUP);
    running.until_it_says("[INF] Reloaded: trace");
    running.until_it_says("[INF] Reloaded server configuration");
    let traced = connect().await.expect("the token is right");
    traced.subscribe("seen").await.expect("it is taken");
    running.until_it_says("<<- [SUB seen 1]");
    running.signal(Signal::SIGTERM);
    let log = running.end().stderr;
    assert!(log.contains("<<- [CONNECT {") && log.contains("\"auth_token\":\"[REDACTED]\""), "{log}");
    assert!(!log.contains("s3cret") && !log.contains("unseen"), "{log}");
}
