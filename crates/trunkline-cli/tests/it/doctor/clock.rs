//! A Redis whose clock is wrong: a real one, behind a relay that tells another time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use trunkline_testkit::RedisServer;

use super::Patient;

const QUESTION: &[u8] = b"*1\r\n$4\r\nTIME\r\n";

/// Passes everything on but the question for the time, which it answers itself, so many seconds ahead. Its threads end with
/// their connections, and the last with the process of the test.
fn relay(server: u16, seconds_ahead: u64) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
            let (mut answers, mut asker) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut asker);
                let _ = asker.shutdown(Shutdown::Both);
            });
            thread::spawn(move || questions(client, server, seconds_ahead));
        }
    });
    port
}

fn questions(mut client: TcpStream, mut server: TcpStream, seconds_ahead: u64) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        let told = match buffer[..read] == *QUESTION {
            true => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds_ahead;
                let now = now.to_string();
                let answer = format!("*2\r\n${}\r\n{now}\r\n$1\r\n0\r\n", now.len());
                client.write_all(answer.as_bytes())
            }
            false => server.write_all(&buffer[..read]),
        };
        if told.is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

#[test]
fn a_clock_that_is_wrong_is_told() {
    let server = RedisServer::start();
    for (seconds, verdict) in [(10, "warn"), (3600, "fail")] {
        let port = relay(server.port(), seconds);
        let diagnosis =
            Patient::with_messaging(&format!("backend: redis\nredis_url: 'redis://127.0.0.1:{port}'"))
                .examine();
        diagnosis.says("clock", verdict, "ahead of ours");
        assert_eq!(diagnosis.code, i32::from(verdict == "fail"));
    }
}
