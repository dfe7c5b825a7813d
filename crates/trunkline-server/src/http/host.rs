//! Which names requests may use for this server.
//!
//! A page of any site can make a browser send requests to 127.0.0.1 and, by changing what its own name resolves to,
//! read the answers. Its requests carry that name, so only names of the loopback are answered; and, where other machines
//! are served, addresses, which are no names that anybody could have resolve to something else.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{StatusCode, Version, header};

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HostError {
    #[error("the Host header is missing or cannot be read")]
    Unclear,
    #[error(
        "this server does not answer for {0:?}; ask for localhost, 127.0.0.1 or [::1] (protection against DNS rebinding)"
    )]
    Foreign(String),
}

impl HostError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Unclear => StatusCode::BAD_REQUEST,
            Self::Foreign(_) => StatusCode::MISDIRECTED_REQUEST,
        }
    }
}

/// Checks the name in the request's target, if it has one, and in its Host header. `addresses` are good where the
/// server is for other machines, too.
pub(super) fn check<B>(request: &Request<B>, addresses: bool) -> Result<(), HostError> {
    if let Some(authority) = request.uri().authority() {
        check_authority(authority, addresses)?;
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let host = host.to_str().map_err(|_| HostError::Unclear)?;
            check_authority(&host.parse().map_err(|_| HostError::Unclear)?, addresses)
        }
        // Probes may speak HTTP/1.0, which knows no Host; browsers do not.
        (None, _) if request.version() < Version::HTTP_11 => Ok(()),
        _ => Err(HostError::Unclear),
    }
}

fn check_authority(authority: &Authority, addresses: bool) -> Result<(), HostError> {
    let host = authority.host();
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let known = host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|ip| addresses || ip.is_loopback())
        || v6.and_then(|ip| ip.parse::<Ipv6Addr>().ok()).is_some_and(|ip| addresses || ip.is_loopback());
    match known && !authority.as_str().contains('@') {
        true => Ok(()),
        false => Err(HostError::Foreign(authority.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(host: Option<&str>, uri: &str, version: Version) -> Result<(), HostError> {
        let mut request = Request::builder().uri(uri).version(version);
        if let Some(host) = host {
            request = request.header(header::HOST, host);
        }
        check(&request.body(()).expect("a valid request"), false)
    }

    #[test]
    fn where_other_machines_are_served_addresses_are_answered_and_names_are_not() {
        for (host, answered) in
            [("192.168.0.1", true), ("10.0.0.1:8222", true), ("[fd00::1]:1", true), ("evil.example", false)]
        {
            let request =
                Request::builder().uri("/").header(header::HOST, host).body(()).expect("a valid request");
            assert_eq!(check(&request, true).is_ok(), answered, "{host}");
        }
    }

    #[test]
    fn only_names_of_the_loopback_are_answered() {
        for good in
            ["localhost", "LocalHost:8222", "127.0.0.1", "127.0.0.1:1", "127.8.9.1", "[::1]", "[::1]:9"]
        {
            assert_eq!(checked(Some(good), "/", Version::HTTP_11), Ok(()), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.0.1",
            "[::2]",
            "a@localhost",
        ] {
            let refused = HostError::Foreign(bad.to_owned());
            assert_eq!(checked(Some(bad), "/", Version::HTTP_11), Err(refused), "{bad}");
        }
    }

    #[test]
    fn a_target_with_a_foreign_name_is_refused_whatever_the_header_says() {
        let outcome = checked(Some("localhost"), "http://evil.example/varz", Version::HTTP_11);
        assert_eq!(outcome, Err(HostError::Foreign("evil.example".to_owned())));
    }

    #[test]
    fn the_header_may_be_missing_before_http_1_1_only() {
        assert_eq!(checked(None, "/", Version::HTTP_10), Ok(()));
        assert_eq!(checked(None, "/", Version::HTTP_11), Err(HostError::Unclear));
        assert_eq!(checked(Some("a b"), "/", Version::HTTP_11), Err(HostError::Unclear));
    }
}
