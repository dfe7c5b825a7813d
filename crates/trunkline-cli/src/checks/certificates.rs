//! Until when certificates are good: those in files of the configuration, and those that servers show.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Finding, Verdict};
use crate::unverified::Unverified;

const CHECK: &str = "tls";

/// A certificate that ends within so many days is worth a word.
const WARN_DAYS: i64 = 30;
const DAY_SECONDS: i64 = 24 * 60 * 60;

/// Longest first line of a NATS server.
const INFO_BYTES_MAX: usize = 64 << 10;

/// How a server comes to speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// From the first byte on.
    AtOnce,
    /// After a first line of its own, INFO.
    AfterInfo,
}

/// The certificates in a file that a setting names.
pub(crate) fn file(setting: &str, path: &Path) -> Vec<Finding> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let fix = || format!("name a file in PEM with certificates in {setting}");
    let what = format!("{} ({setting})", path.display());
    match read {
        Ok(found) if !found.is_empty() => worst(&what, &found).into_iter().collect(),
        Ok(_) => vec![Finding::fail(CHECK, format!("{what} has no certificate"), fix())],
        Err(error) => vec![Finding::fail(CHECK, format!("{what} cannot be used: {error}"), fix())],
    }
}

/// The certificates that the server at this address shows; none where it speaks no TLS.
pub(crate) async fn peer(
    what: &str,
    host: &str,
    port: u16,
    dialect: Dialect,
    limit: Duration,
) -> Option<Finding> {
    let shown = tokio::time::timeout(limit, look(host, port, dialect)).await.ok()?.ok()?;
    worst(&format!("what {what} shows"), &shown)
}

/// What to say of the one that ends first.
fn worst(what: &str, certificates: &[CertificateDer<'_>]) -> Option<Finding> {
    let now = Timestamp::now().as_second();
    let spans = certificates.iter().filter_map(|certificate| {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let time = certificate.validity();
        Some((time.not_before.timestamp(), time.not_after.timestamp()))
    });
    let findings = spans.map(|(from, until)| judge(what, from, until, now));
    findings.max_by_key(|finding| finding.verdict)
}

/// All times in seconds of Unix time.
fn judge(what: &str, from: i64, until: i64, now: i64) -> Finding {
    let day = |second| {
        Timestamp::from_second(second).map_or_else(|_| "?".to_owned(), |time| time.strftime("%F").to_string())
    };
    let fix = "have a new certificate made and put into the same files; SIGHUP has `trunkline up` read its own again";
    match () {
        () if until < now => Finding::bad(
            Verdict::Fail,
            CHECK,
            format!("the certificate in {what} expired on {}", day(until)),
            fix,
        ),
        () if from > now => Finding::fail(
            CHECK,
            format!("the certificate in {what} is not valid before {}", day(from)),
            "check the clock of this machine, or have a new certificate made",
        ),
        () if until - now < WARN_DAYS * DAY_SECONDS => Finding::bad(
            Verdict::Warn,
            CHECK,
            format!(
                "the certificate in {what} expires on {}, in {} days",
                day(until),
                (until - now) / DAY_SECONDS
            ),
            fix,
        ),
        () => Finding::ok(CHECK, format!("the certificate in {what} is good until {}", day(until))),
    }
}

/// Takes what the server shows in a handshake, and says nothing behind it: nothing is ever trusted here.
async fn look(host: &str, port: u16, dialect: Dialect) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut socket = TcpStream::connect((host, port)).await?;
    if dialect == Dialect::AfterInfo {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < INFO_BYTES_MAX {
            line.push(socket.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&line);
        if !line.contains("\"tls_required\":true") && !line.contains("\"tls_available\":true") {
            return Ok(Vec::new());
        }
    }
    let witness = Unverified::default();
    let config = witness.client().map_err(io::Error::other)?;
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    // It may fail behind this, where a certificate of this side is wanted: what was shown is known by then.
    let _ = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
    Ok(witness.shown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_judged_by_their_time() {
        let now = 1_800_000_000;
        for (from, until, verdict) in [
            (-DAY_SECONDS, 90 * DAY_SECONDS, Verdict::Ok),
            (-DAY_SECONDS, 29 * DAY_SECONDS, Verdict::Warn),
            (-90 * DAY_SECONDS, -1, Verdict::Fail),
            (DAY_SECONDS, 90 * DAY_SECONDS, Verdict::Fail),
        ] {
            assert_eq!(judge("x", now + from, now + until, now).verdict, verdict, "{from} {until}");
        }
    }
}
