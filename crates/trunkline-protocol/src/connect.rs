//! The JSON object of `CONNECT`: what a client says about itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::received::Received;

/// What a client says about itself and asks for.
///
/// `Default` is what nats-server assumes for fields that are missing (or null): `verbose`,
/// `pedantic` and `echo` true, the rest false, 0 or absent. Unknown fields are ignored, and the
/// letters of known ones may be of any case. `Debug` shows secrets as `***`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Received")]
pub struct ConnectOptions {
    /// Answer each operation with `+OK`.
    pub verbose: bool,
    /// Check subjects strictly.
    pub pedantic: bool,
    /// Deliver the client's own messages to its own subscriptions.
    pub echo: bool,
    /// The client understands `HMSG` and may send `HPUB`.
    pub headers: bool,
    /// Answer requests that nobody receives with status 503; needs `headers`.
    pub no_responders: bool,
    /// The client wants TLS.
    pub tls_required: bool,
    /// 0, or 1 for a client that understands `INFO` at any time.
    pub protocol: i64,
    /// The client's name for the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The language of the client library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lang: Option<String>,
    /// The version of the client library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// User name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<String>,
    /// Token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<String>,
    /// User JWT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<String>,
    /// Public NKey.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey: Option<String>,
    /// The server's nonce, signed with the NKey, in URL-safe base64 without padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sig: Option<String>,
    /// The account that it asks for. nats-server refuses whoever names one: which it is, is a matter of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

impl ConnectOptions {
    /// Reads the text of `CONNECT`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] when it is not a JSON object (or null), or a known field has the wrong type.
    pub fn parse(json: &[u8]) -> Result<Self, ConnectError> {
        Self::DEFAULT.updated(json)
    }

    /// Reads the text of another `CONNECT` of the same client: what is missing (or null) in it stays as it was, as on
    /// nats-server.
    ///
    /// # Errors
    ///
    /// As of [`ConnectOptions::parse`].
    pub fn updated(&self, json: &[u8]) -> Result<Self, ConnectError> {
        Ok(Received::parse(json).map_err(ConnectError)?.over(self))
    }

    const DEFAULT: Self = Self {
        verbose: true,
        pedantic: true,
        echo: true,
        headers: false,
        no_responders: false,
        tls_required: false,
        protocol: 0,
        name: None,
        lang: None,
        version: None,
        user: None,
        pass: None,
        auth_token: None,
        jwt: None,
        nkey: None,
        sig: None,
        account: None,
    };
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |value: &Option<String>| value.as_ref().map(|_| "***");
        f.debug_struct("ConnectOptions")
            .field("verbose", &self.verbose)
            .field("pedantic", &self.pedantic)
            .field("echo", &self.echo)
            .field("headers", &self.headers)
            .field("no_responders", &self.no_responders)
            .field("tls_required", &self.tls_required)
            .field("protocol", &self.protocol)
            .field("name", &self.name)
            .field("lang", &self.lang)
            .field("version", &self.version)
            .field("user", &self.user)
            .field("pass", &secret(&self.pass))
            .field("auth_token", &secret(&self.auth_token))
            .field("jwt", &secret(&self.jwt))
            .field("nkey", &self.nkey)
            .field("sig", &secret(&self.sig))
            .field("account", &self.account)
            .finish()
    }
}

/// The text of `CONNECT` is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("CONNECT is not the JSON object it should be")]
pub struct ConnectError(#[source] serde_json::Error);

impl Received {
    /// With what was said before in place of what is missing.
    fn over(self, former: &ConnectOptions) -> ConnectOptions {
        let text = |said: Option<String>, former: &Option<String>| said.or_else(|| former.clone());
        ConnectOptions {
            verbose: self.verbose.unwrap_or(former.verbose),
            pedantic: self.pedantic.unwrap_or(former.pedantic),
            echo: self.echo.unwrap_or(former.echo),
            headers: self.headers.unwrap_or(former.headers),
            no_responders: self.no_responders.unwrap_or(former.no_responders),
            tls_required: self.tls_required.unwrap_or(former.tls_required),
            protocol: self.protocol.unwrap_or(former.protocol),
            name: text(self.name, &former.name),
            lang: text(self.lang, &former.lang),
            version: text(self.version, &former.version),
            user: text(self.user, &former.user),
            pass: text(self.pass, &former.pass),
            auth_token: text(self.auth_token, &former.auth_token),
            jwt: text(self.jwt, &former.jwt),
            nkey: text(self.nkey, &former.nkey),
            sig: text(self.sig, &former.sig),
            account: text(self.account, &former.account),
        }
    }
}

impl From<Received> for ConnectOptions {
    fn from(received: Received) -> Self {
        received.over(&Self::DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn missing_and_null_fields_take_the_defaults_of_nats_server() {
        fn check(json: &str, expected: ConnectOptions) {
            assert_eq!(ConnectOptions::parse(json.as_bytes()).expect(json), expected);
        }
        let default = ConnectOptions::default();
        assert!(default.verbose && default.pedantic && default.echo);
        assert!(!default.headers && !default.no_responders && default.protocol == 0);
        check("{}", default.clone());
        check(r#"{"verbose":null,"name":null,"protocol":null,"pass":null}"#, default.clone());
        check(r#"{"unknown":{"deep":[1,2]},"nonce":7}"#, default.clone());
        check("null", default.clone());
        check(
            r#" {"verbose":false,"pedantic":false,"tls_required":false,"name":"n","lang":"go","version":"1.2",
                "protocol":1,"echo":false,"headers":true,"no_responders":true} "#,
            ConnectOptions {
                verbose: false,
                pedantic: false,
                echo: false,
                headers: true,
                no_responders: true,
                protocol: 1,
                name: Some("n".into()),
                lang: Some("go".into()),
                version: Some("1.2".into()),
                ..default
            },
        );
    }

    #[test]
    fn another_connect_changes_what_it_names() {
        let some = |text: &str| Some(text.to_owned());
        // Every field is another than where nothing is said.
        let first = ConnectOptions {
            verbose: false,
            pedantic: false,
            echo: false,
            headers: true,
            no_responders: true,
            tls_required: true,
            protocol: 1,
            name: some("n"),
            lang: some("l"),
            version: some("v"),
            user: some("u"),
            pass: some("p"),
            auth_token: some("t"),
            jwt: some("j"),
            nkey: some("k"),
            sig: some("s"),
            account: some("a"),
        };
        let said = serde_json::to_vec(&first).expect("it can be written");
        assert_eq!(ConnectOptions::parse(&said).expect("an object"), first);
        assert_eq!(first.updated(b"{}").expect("an object"), first);
        let second =
            first.updated(br#"{"verbose":true,"name":"m","user":null,"protocol":0}"#).expect("an object");
        let expected = ConnectOptions { verbose: true, name: Some("m".into()), protocol: 0, ..first.clone() };
        assert_eq!(second, expected);
        assert!(first.updated(b"[]").is_err());
    }

    #[test]
    fn fields_are_read_as_nats_server_reads_them() {
        fn check(json: &[u8], verbose: bool, name: Option<&str>) {
            let read = ConnectOptions::parse(json).unwrap_or_else(|_| panic!("{}", json.escape_ascii()));
            assert_eq!((read.verbose, read.name.as_deref()), (verbose, name), "{}", json.escape_ascii());
        }
        check(br#"{"VERBOSE":false,"Name":"n"}"#, false, Some("n"));
        check("{\"verbo\u{17f}e\":false,\"\u{17f}\":1}".as_bytes(), false, None);
        let key = ConnectOptions::parse("{\"N\u{212a}EY\":\"U\"}".as_bytes()).expect("an object");
        assert_eq!(key.nkey.as_deref(), Some("U"));
        check(br#"{"verbose":true,"Verbose":false,"NAME":"m","name":"n"}"#, false, Some("n"));
        check(br#"{"verbose":false,"verbose":null,"name":"n","name":null}"#, false, Some("n"));
        check(b"{\"name\":\"a\xffb\xe2\x82\",\"\xff\":1}", true, Some("a\u{fffd}b\u{fffd}\u{fffd}"));
        check(br#"{"name":"\ud83d\ude00","x":"\ud800"}"#, true, Some("\u{1f600}"));
        check(br#"{"name":"\ud83d-\ude00\uD800\u0041"}"#, true, Some("\u{fffd}-\u{fffd}\u{fffd}A"));
        check(br#"{"name":"\\ud800"}"#, true, Some("\\ud800"));
        let deep = format!("{{\"verbose\":false,\"x\":{}1{}}}", "[{\"y\":".repeat(5000), "}]".repeat(5000));
        check(deep.as_bytes(), false, None);
    }

    #[test]
    fn bad_json_is_an_error_with_its_cause() {
        fn check(json: &str) {
            let error = ConnectOptions::parse(json.as_bytes()).expect_err(json);
            assert_eq!(error.to_string(), "CONNECT is not the JSON object it should be");
            assert!(error.source().is_some());
        }
        check("");
        check("{");
        check("7");
        check("[]");
        check("[true,true]");
        check(r#"{"verbose":"yes"}"#);
        check(r#"{"user":7}"#);
        check(r#"{"USER":7,"user":"u"}"#);
        check(r#"{"name":"\uzzzz"}"#);
        check(r#"{"x":"\"#);
        check("{\"name\":\"a\u{1}b\"}");
        check("{} {}");
    }

    #[test]
    fn debug_shows_no_secret() {
        let json =
            r#"{"user":"ann","pass":"s3cret1","auth_token":"s3cret2","jwt":"s3cret3","sig":"s3cret4"}"#;
        let debug = format!("{:?}", ConnectOptions::parse(json.as_bytes()).expect("valid"));
        assert!(debug.contains("ann") && debug.contains("***"), "{debug}");
        assert!(!debug.contains("s3cret"), "{debug}");
    }
}
