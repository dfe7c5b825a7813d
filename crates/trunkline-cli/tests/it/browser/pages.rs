//! An HTTP server for one origin: the page and its modules, the test's plan for it, and a place for its report.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use trunkline_testkit::environment;

/// Longest wait for a report; on an idle machine it is there within three seconds, the start of the browser included.
const PATIENCE: Duration = Duration::from_secs(60);

/// Most that a page may report.
const REPORT_BYTES_MAX: u64 = 1024 * 1024;

/// One origin. It ends when it is dropped.
pub(super) struct Pages {
    port: u16,
    /// What the page asks the test for. Held only to look at it or to replace it. `None` ends the server.
    plan: Arc<Mutex<Option<String>>>,
    reports: Receiver<Value>,
    /// Accepts, and starts a thread for each connection, which ends with its one answer. Ended and joined by `drop`.
    accepting: Option<JoinHandle<()>>,
}

impl Pages {
    pub(super) fn serve() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let plan = Arc::new(Mutex::new(Some(String::new())));
        let (sender, reports) = sync_channel(1);
        let accepting = {
            let plan = Arc::clone(&plan);
            thread::spawn(move || {
                for browser in listener.incoming().map_while(Result::ok) {
                    let Some(plan) = plan.lock().expect("nobody panics with it").clone() else { return };
                    let sender = sender.clone();
                    thread::spawn(move || {
                        // Browsers open connections that they do not use, and close others early.
                        let _ = answer(&browser, &plan, &sender);
                    });
                }
            })
        };
        Self { port, plan, reports, accepting: Some(accepting) }
    }

    /// Such as `http://localhost:40123`, which is also the address of the page.
    pub(super) fn origin(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    pub(super) fn plan(&self, plan: Value) {
        *self.plan.lock().expect("nobody panics with it") = Some(plan.to_string());
    }

    /// Waits for what the page says in the end; `None` when it does not.
    pub(super) fn report(&self) -> Option<Value> {
        self.reports.recv_timeout(PATIENCE).ok()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        *self.plan.lock().expect("nobody panics with it") = None;
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn answer(browser: &TcpStream, plan: &str, reports: &SyncSender<Value>) -> io::Result<()> {
    browser.set_read_timeout(Some(PATIENCE))?;
    let mut request = BufReader::new(browser);
    let mut line = String::new();
    request.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut length = 0;
    loop {
        let mut header = String::new();
        if request.read_line(&mut header)? == 0 || header == "\r\n" {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    if method == "POST" {
        let mut body = Vec::new();
        request.take(REPORT_BYTES_MAX.min(length)).read_to_end(&mut body)?;
        let report = serde_json::from_slice(&body).unwrap_or(Value::Null);
        // A second report would be a mistake of the page; the test has seen the first.
        let _ = reports.try_send(report);
        return respond(browser, "204 No Content", "text/plain", b"");
    }
    if path == "/plan.json" {
        return respond(browser, "200 OK", "application/json", plan.as_bytes());
    }
    let file = file(path);
    match file.as_deref().map(std::fs::read) {
        Some(Ok(content)) => respond(browser, "200 OK", kind(path), &content),
        _ => respond(browser, "404 Not Found", "text/plain", b"there is no such file"),
    }
}

/// The file for a path: below the packages for Node, or of the page itself. None that lies elsewhere.
fn file(path: &str) -> Option<PathBuf> {
    let (directory, rest) = match path.strip_prefix("/modules/") {
        Some(rest) => (environment::node_path().join("node_modules"), rest),
        None if path == "/" => (environment::clients().join("browser"), "index.html"),
        None => (environment::clients().join("browser"), path.trim_start_matches('/')),
    };
    let inside = Path::new(rest).components().all(|part| matches!(part, Component::Normal(_)));
    inside.then(|| directory.join(rest))
}

fn kind(path: &str) -> &'static str {
    match path.rsplit_once('.') {
        Some((_, "js" | "mjs")) => "text/javascript; charset=utf-8",
        Some((_, "json")) => "application/json",
        _ => "text/html; charset=utf-8",
    }
}

fn respond(mut browser: &TcpStream, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    write!(
        browser,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    browser.write_all(body)
}
