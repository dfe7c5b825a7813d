//! The protocol as bytes, for what a stock client would not send or not show.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::command::PATIENCE;

/// A bare socket that has read INFO and sent CONNECT.
pub(super) struct Raw(BufReader<TcpStream>);

/// A message as it came over the wire.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Msg {
    pub(super) subject: String,
    pub(super) sid: String,
    pub(super) reply: Option<String>,
    pub(super) header: String,
    pub(super) payload: Vec<u8>,
}

impl Raw {
    pub(super) fn connect(url: &str) -> Self {
        Self::connect_with(url, r#"{"verbose":false,"headers":true,"no_responders":true,"protocol":1}"#)
    }

    pub(super) fn connect_with(url: &str, options: &str) -> Self {
        let socket = TcpStream::connect(url.trim_start_matches("nats://")).expect("the server listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        let mut raw = Self(BufReader::new(socket));
        let info = raw.line();
        assert!(info.starts_with("INFO "), "{info}");
        raw.send(&format!("CONNECT {options}\r\n"));
        raw
    }

    pub(super) fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).expect("the server reads");
    }

    pub(super) fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) {
        let reply = reply.map_or_else(String::new, |reply| format!("{reply} "));
        let mut bytes = format!("PUB {subject} {reply}{}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.0.get_mut().write_all(&bytes).expect("the server reads");
    }

    pub(super) fn publish_with_header(&mut self, subject: &str, header: &str, payload: &str) {
        let (block, total) = (header.len(), header.len() + payload.len());
        self.send(&format!("HPUB {subject} {block} {total}\r\n{header}{payload}\r\n"));
    }

    /// Subscribes; the subscription stands when this returns.
    pub(super) fn subscribe(&mut self, pattern: &str, sid: &str) {
        self.send(&format!("SUB {pattern} {sid}\r\n"));
        self.flush();
    }

    /// Waits for the answer to a PING; nothing else may come before.
    pub(super) fn flush(&mut self) {
        self.send("PING\r\n");
        assert_eq!(self.line_past_info(), "PONG");
    }

    /// The next line; empty at the end of the connection.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line in time");
        line.trim_end().to_owned()
    }

    /// The next line that is no INFO and no PING of the server.
    pub(super) fn line_past_info(&mut self) -> String {
        loop {
            let line = self.line();
            if !line.starts_with("INFO ") && line != "PING" {
                return line;
            }
        }
    }

    /// The next message; anything else is an error.
    pub(super) fn message(&mut self) -> Msg {
        let line = self.line_past_info();
        self.message_of(&line)
    }

    /// The messages before the answer to a PING that was sent.
    pub(super) fn messages_before_pong(&mut self) -> Vec<Msg> {
        let mut messages = Vec::new();
        loop {
            match self.line_past_info() {
                line if line == "PONG" => return messages,
                line => messages.push(self.message_of(&line)),
            }
        }
    }

    /// Sends PING; the messages before and after its answer, so many or more: a PONG does not say that they are here.
    pub(super) fn flush_among(&mut self, count: usize) -> Vec<Msg> {
        self.send("PING\r\n");
        let mut messages = self.messages_before_pong();
        while messages.len() < count {
            messages.push(self.message());
        }
        messages
    }

    fn message_of(&mut self, line: &str) -> Msg {
        let words: Vec<&str> = line.split(' ').collect();
        let sizes = match words[0] {
            "MSG" => 1,
            "HMSG" => 2,
            _ => panic!("{line:?} is no message"),
        };
        let number = |at: usize| words[at].parse::<usize>().expect("a size");
        let reply = (words.len() == 4 + sizes).then(|| words[3].to_owned());
        let total = number(words.len() - 1);
        let header = if sizes == 2 { number(words.len() - 2) } else { 0 };
        let mut bytes = vec![0; total + 2];
        self.0.read_exact(&mut bytes).expect("a payload in time");
        assert_eq!(&bytes[total..], b"\r\n");
        Msg {
            subject: words[1].to_owned(),
            sid: words[2].to_owned(),
            reply,
            header: String::from_utf8(bytes[..header].to_vec()).expect("headers are text"),
            payload: bytes[header..total].to_vec(),
        }
    }

    /// Whether nothing comes for so long.
    pub(super) fn is_silent_for(&mut self, time: Duration) -> bool {
        self.0.get_ref().set_read_timeout(Some(time)).expect("a socket takes a timeout");
        let silent = match self.0.fill_buf() {
            Ok(_) => false,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        self.0.get_ref().set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        silent
    }
}

impl Msg {
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("a payload of text")
    }
}
