//! The log beside nats-server's own, line by line: what clients do, what they are sent, and what they do wrong.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::command::{Running, start};

use super::{Place, address_in, theirs};

/// A server that shows what clients do.
fn run(place: &Place, program: &Path, config: &str, arguments: &[&str]) -> (Running, String) {
    place.write("server.conf", &format!("listen: \"127.0.0.1:-1\"\n{config}"));
    let arguments = [&["-c", "server.conf"], arguments].concat();
    let mut running = start(place.command(program, &arguments), b"");
    let address = address_in(&running.until_it_says("Listening for client connections on "));
    running.until_it_says("Server is ready");
    (running, address)
}

/// Sends all of it, a PING behind each part, and reads until the server has answered or closed.
fn converse(address: &str, parts: &[&str]) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(crate::command::PATIENCE)).expect("a time that is some");
    let until = |stream: &mut TcpStream, end: &str| {
        let (mut seen, mut byte) = (String::new(), [0]);
        while !seen.ends_with(end) && stream.read(&mut byte).is_ok_and(|count| count > 0) {
            seen.push(char::from(byte[0]));
        }
        seen.ends_with(end)
    };
    assert!(until(&mut stream, "\r\n"), "INFO comes first");
    for part in parts {
        if stream.write_all(format!("{part}PING\r\n").as_bytes()).is_err() || !until(&mut stream, "PONG\r\n")
        {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    until(&mut stream, "never");
}

/// What the log says of clients: levels and texts, sorted, as the order of what is received and sent is not the same.
fn of_clients(log: &str) -> Vec<String> {
    let line = |line: &str| {
        let (level, text) = line.split_once(" [")?.1.split_once("] ")?;
        let (_, said) = text.split_once(" - cid:")?;
        Some(format!("[{level}] {}", said.split_once(" - ")?.1))
    };
    let mut lines: Vec<String> = log.lines().filter_map(line).collect();
    lines.sort();
    lines
}

/// Both logs say the same of a conversation.
#[track_caller]
fn check_same(config: &str, arguments: &[&str], parts: &[&str]) -> Vec<String> {
    let place = Place::new();
    let [ours, theirs] = [place.ours(), theirs()].map(|program| {
        let (mut running, address) = run(&place, &program, config, arguments);
        converse(&address, parts);
        if arguments == ["-D"] || arguments == ["-DV"] {
            running.until_it_says("Client connection closed: ");
        }
        running.signal(Signal::SIGTERM);
        of_clients(&running.end().stderr)
    });
    assert_eq!(ours, theirs, "{config} {parts:?}");
    ours
}

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1,\"name\":\"n\",\"lang\":\"l\",\
                       \"version\":\"1.0\",\"headers\":true,\"user\":\"ann\",\"pass\":\"secret\"}\r\n";
const USERS: &str = "authorization { users: [ {user: ann, password: secret, permissions: {publish: \"ok.>\", \
                     subscribe: [\"ok.>\", \"q.* w\"]}} ] }\n";

#[test]
fn operations_are_shown_in_both_directions() {
    let parts = [
        CONNECT,
        "SUB ok.a 1\r\nSUB ok.a q 2\r\nSUB ok.* 3\r\n",
        "PUB ok.a 5\r\nhello\r\n",
        "PUB ok.b re 2\r\nh\u{1}\r\n",
        "HPUB ok.b re 18 20\r\nNATS/1.0\r\na: b\r\n\r\nhi\r\n",
        "PUB ok.a 0\r\n\r\n",
        "UNSUB 1\r\nUNSUB 2 2\r\nUNSUB 77\r\n",
        "PUB ok.a 2\r\n\"\\\r\n",
        "PONG\r\n",
    ];
    let lines = check_same(USERS, &["-DV"], &parts);
    for said in [
        "[TRC] <<- [CONNECT {",
        "[TRC] \"v1.0:l:n\" - \"$G/user:ann\" - ->> [MSG ok.a 1 5]",
        "[TRC] \"v1.0:l:n\" - \"$G/user:ann\" - ->> MSG_PAYLOAD: [\"hello\"]",
        "[TRC] \"v1.0:l:n\" - \"$G/user:ann\" - ->> [HMSG ok.b 3 re 18 20]",
        "[TRC] \"v1.0:l:n\" - \"$G/user:ann\" - <-> [DELSUB 1]",
        "[DBG] Client connection created",
        "[DBG] \"v1.0:l:n\" - \"$G/user:ann\" - Client connection closed: Client Closed",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(said)), "{said}: {lines:#?}");
    }
    assert!(lines.iter().all(|line| !line.contains("secret")), "{lines:#?}");
}

#[test]
fn verbose_clients_are_shown_what_they_are_told() {
    check_same("", &["-DV"], &["CONNECT {\"verbose\":true}\r\n", "SUB a..b 1\r\nSUB a 2\r\n"]);
}

#[test]
fn as_much_is_shown_of_messages_as_the_file_says() {
    let parts = [CONNECT, "PUB ok.a 11\r\nhello world\r\nHPUB ok.b 18 20\r\nNATS/1.0\r\na: b\r\n\r\nhi\r\n"];
    check_same("max_traced_msg_len: 5\n", &["-V"], &parts);
    check_same("trace_headers: true\n", &["-V"], &parts);
    check_same("", &["-V", "--max_traced_msg_len", "7"], &parts);
}

#[test]
fn what_clients_do_wrong_is_told_without_being_asked_for() {
    let said = check_same(USERS, &["-D"], &[CONNECT, "SUB no 7\r\n"]);
    assert!(
        said.iter().any(|line| line.ends_with("Subscription Violation - Subject \"no\", SID 7")),
        "{said:?}"
    );
    check_same(USERS, &["-D"], &[CONNECT, "SUB q.x other 7\r\n"]);
    check_same(USERS, &["-D"], &[CONNECT, "PUB no 1\r\nx\r\n"]);
    check_same(USERS, &["-D"], &["CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"wrong\"}\r\n"]);
    check_same(USERS, &["-D"], &["CONNECT {\"verbose\":false,\"user\":\"bob\"}\r\n"]);
    check_same(USERS, &["-D"], &["CONNECT {\"verbose\":false}\r\n"]);
    let token = "authorization { token: right }\n";
    check_same(token, &["-D"], &["CONNECT {\"verbose\":false,\"auth_token\":\"wrong\"}\r\n"]);
    check_same(token, &["-D"], &["CONNECT {\"verbose\":false,\"auth_token\":\"right\"}\r\n"]);
    check_same("max_payload: 10\n", &["-D"], &[CONNECT, "PUB ok 11\r\nhello world\r\n"]);
    check_same("max_subscriptions: 1\n", &["-D"], &[CONNECT, "SUB a 1\r\nSUB b 2\r\n"]);
    check_same("", &["-D"], &[CONNECT, "-ERR 'my error'\r\n"]);
    let accounts = "accounts { A { users: [{user: ann, password: secret}] } }\nno_auth_user: ann\n";
    check_same(accounts, &["-D"], &[CONNECT]);
    check_same(accounts, &["-D"], &["CONNECT {\"verbose\":false}\r\n"]);
    let long = format!("SUB {} 1\r\n", "a".repeat(5000));
    check_same("", &["-D"], &[CONNECT, &long]);
}

#[test]
fn a_reader_that_is_cut_off_is_told_as_by_nats_server() {
    let place = Place::new();
    let config = "max_pending: 100KB\nmax_payload: 100KB\nwrite_deadline: \"30s\"\n";
    for program in [place.ours(), theirs()] {
        let (mut running, address) = run(&place, &program, config, &[]);
        let mut reader = TcpStream::connect(&address).expect("it listens");
        reader
            .write_all(b"CONNECT {\"verbose\":false,\"name\":\"slow\"}\r\nSUB s 1\r\nPING\r\n")
            .expect("it is read");
        let mut seen = Vec::new();
        while !seen.ends_with(b"PONG\r\n") {
            let mut byte = [0];
            reader.read_exact(&mut byte).expect("it answers");
            seen.push(byte[0]);
        }
        let mut writer = TcpStream::connect(&address).expect("it listens");
        writer.write_all(b"CONNECT {\"verbose\":false}\r\n").expect("it is read");
        let message = format!("PUB s 100000\r\n{}\r\n", "x".repeat(100_000));
        for _ in 0..200 {
            writer.write_all(message.as_bytes()).expect("it is read");
        }
        let line = running.until_it_says("Slow Consumer Detected");
        assert!(line.contains("[INF] ") && line.contains(" - \"slow\" - "), "{line}");
        assert!(line.ends_with("Slow Consumer Detected: MaxPending of 102400 Exceeded"), "{line}");
    }
}

#[test]
fn a_log_that_is_full_is_put_aside_as_by_nats_server() {
    let place = Place::new();
    let config = "log_file: \"x.log\"\nlogfile_size_limit: 2000\nlogfile_max_num: 3\ntrace: true\n";
    for (name, program) in [("ours", place.ours()), ("theirs", theirs())] {
        let directory = place.path().join(name);
        std::fs::create_dir(&directory).expect("a new directory");
        std::fs::write(directory.join("server.conf"), format!("listen: \"127.0.0.1:-1\"\n{config}"))
            .expect("a directory takes a file");
        let mut command = place.command(&program, &["-c", "server.conf", "--ports_file_dir", "."]);
        command.current_dir(&directory);
        let running = start(command, b"");
        let address = super::running::wait_for(|| {
            let mut files = std::fs::read_dir(&directory).ok()?.flatten().map(|entry| entry.path());
            let ports = files.find(|path| path.extension().is_some_and(|end| end == "ports"))?;
            let ports: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(ports).ok()?).ok()?;
            Some(ports["nats"][0].as_str()?.trim_start_matches("nats://").to_owned())
        });
        let parts: Vec<&str> = std::iter::repeat_n("PUB foo 5\r\nhello\r\n", 60).collect();
        converse(&address, &parts);
        running.signal(Signal::SIGTERM);
        assert_eq!(running.end().code(), 0, "{name}");
        let files = std::fs::read_dir(&directory).expect("it is there").flatten();
        let names = files.filter_map(|entry| entry.file_name().into_string().ok());
        let mut logs: Vec<String> = names.filter(|file| file.starts_with("x.log")).collect();
        logs.sort();
        assert_eq!(logs.len(), 3, "{name}: {logs:?}");
        let current = std::fs::read_to_string(directory.join("x.log")).expect("it is there");
        let first = current.lines().next().unwrap_or_default();
        let expected = format!("[INF] Rotated log, backup saved as {:?}", logs[2]);
        assert!(first.ends_with(&expected), "{name}: {first}");
        assert!(current.lines().nth(1).is_some_and(|line| line.contains("[INF] Purged log file \"x.log.")));
        let aside = directory.join(&logs[1]);
        let aside = aside.metadata().expect("it is there");
        assert!((2001..2400).contains(&aside.len()), "{name}: {aside:?}");
        assert_eq!(aside.mode() & 0o007, 0, "{name}: what was said is not for everybody");
    }
}
