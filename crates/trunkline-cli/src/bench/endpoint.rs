//! Where a server listens and who we are to it, read from a NATS URL.

use serde_json::{Map, Value};
use url::Url;

use super::error::BenchError;

const PORT_DEFAULT: u16 = 4222;

/// Address and credentials of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Host without the brackets of IPv6.
    pub(super) host: String,
    pub(super) port: u16,
    user: Option<String>,
    password: Option<String>,
}

impl Endpoint {
    /// The listener of a server that bench has started.
    pub(super) fn loopback(port: u16) -> Self {
        Self { host: "127.0.0.1".to_owned(), port, user: None, password: None }
    }

    /// Reads `nats://[USER[:PASSWORD]@]HOST[:PORT]`; without a password the user is a token, as in every NATS client.
    ///
    /// # Errors
    /// [`BenchError::Url`] for another scheme, several servers, or no host.
    pub(super) fn parse(text: &str) -> Result<Self, BenchError> {
        let refuse = |reason| BenchError::Url { url: without_credentials(text), reason };
        if text.contains(',') {
            return Err(refuse("one server at a time"));
        }
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
        let url = Url::parse(&with_scheme).map_err(|_| refuse("not a URL"))?;
        match url.scheme() {
            "nats" => {}
            "tls" | "wss" | "ws" => return Err(refuse("bench speaks plain NATS over TCP")),
            _ => return Err(refuse("the scheme is not nats://")),
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| refuse("no host"))?;
        let decoded = |part: &str| percent_decoded(part).ok_or_else(|| refuse("a bad %-escape"));
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(PORT_DEFAULT),
            user: Some(url.username()).filter(|user| !user.is_empty()).map(decoded).transpose()?,
            password: url.password().map(decoded).transpose()?,
        })
    }

    /// Host and port, without credentials.
    pub(super) fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The `CONNECT` line of a client that wants no acknowledgement per line and understands no-responders.
    pub(super) fn connect_line(&self) -> String {
        let mut options = Map::new();
        for (key, value) in
            [("verbose", false), ("pedantic", false), ("headers", true), ("no_responders", true)]
        {
            options.insert(key.to_owned(), Value::Bool(value));
        }
        for (key, value) in
            [("name", "trunkline-bench"), ("lang", "rust"), ("version", env!("CARGO_PKG_VERSION"))]
        {
            options.insert(key.to_owned(), value.into());
        }
        options.insert("protocol".to_owned(), 1.into());
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                options.insert("user".to_owned(), user.as_str().into());
                options.insert("pass".to_owned(), password.as_str().into());
            }
            (Some(token), None) => {
                options.insert("auth_token".to_owned(), token.as_str().into());
            }
            (None, _) => {}
        }
        format!("CONNECT {}\r\n", Value::Object(options))
    }
}

/// The URL as an error may show it.
fn without_credentials(text: &str) -> String {
    match (text.find("://").map(|at| at + 3).unwrap_or(0), text.rfind('@')) {
        (start, Some(at)) if at >= start => format!("{}***{}", &text[..start], &text[at..]),
        _ => text.to_owned(),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |index: usize| char::from(*rest.get(index)?).to_digit(16);
        bytes.push((digit(0)? * 16 + digit(1)?) as u8);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_nats_clients_read_them() {
        for (text, address) in [
            ("nats://127.0.0.1:4222", "127.0.0.1:4222"),
            ("nats://bus.internal", "bus.internal:4222"),
            ("localhost:5222", "localhost:5222"),
            ("nats://[::1]:4223", "[::1]:4223"),
        ] {
            assert_eq!(Endpoint::parse(text).expect(text).address(), address);
        }
    }

    #[test]
    fn credentials_go_into_connect() {
        let with_user = Endpoint::parse("nats://ann:p%40ss@h").expect("valid").connect_line();
        assert!(with_user.contains(r#""user":"ann","pass":"p@ss""#), "{with_user}");
        let with_token = Endpoint::parse("nats://s3cret@h").expect("valid").connect_line();
        assert!(with_token.contains(r#""auth_token":"s3cret""#), "{with_token}");
        let anonymous = Endpoint::parse("nats://h").expect("valid").connect_line();
        assert!(!anonymous.contains("user") && !anonymous.contains("token"), "{anonymous}");
    }

    #[test]
    fn what_bench_cannot_load_is_refused_without_its_password() {
        for text in ["tls://ann:secret@h", "http://h", "nats://", "nats://a:1,b:2", "nats://u:%zz@h"] {
            let error = Endpoint::parse(text).expect_err(text);
            assert!(matches!(error, BenchError::Url { .. }), "{text}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
