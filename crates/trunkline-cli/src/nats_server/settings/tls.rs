//! Sections `tls`, of the server and of WebSocket: which certificate is shown, and which is asked for.

use std::path::PathBuf;
use std::time::Duration;

use trunkline::config::{HandshakeFirst, TlsVersion};
use trunkline_server::{ClientCertificates, TlsError, TlsFileError, TlsOptions};

use super::super::conf::{Entry, Value};
use super::super::flags::Flags;
use super::read::Mistakes;
use super::top::says_nothing;
use super::{SettingsError, describe};

/// What a section says, in any order.
struct Section {
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    clients: ClientCertificates,
    handshake_first: HandshakeFirst,
    min_version: TlsVersion,
    timeout: Duration,
}

/// Reads a section; one without anything in it is none. Keys that change nothing are added to `ignored`.
pub(super) fn read(entry: &Entry, ignored: &mut Vec<String>, mistakes: &mut Mistakes) -> Option<TlsOptions> {
    let map = mistakes.map(entry).filter(|map| !map.entries.is_empty())?;
    let unset = TlsOptions::new("", "");
    let mut section = Section {
        cert_file: None,
        key_file: None,
        ca_file: None,
        clients: ClientCertificates::Ignored,
        handshake_first: unset.handshake_first,
        min_version: unset.min_version,
        timeout: unset.timeout,
    };
    for inner in &map.entries {
        read_key(inner, &entry.key, &mut section, ignored, mistakes);
    }
    let Section { cert_file, key_file, ca_file, clients, handshake_first, min_version, timeout } = section;
    let missing = |what| format!("missing '{what}' in TLS configuration");
    let (Some(cert_file), Some(key_file)) = (&cert_file, &key_file) else {
        mistakes.note(&entry.place, missing(if cert_file.is_none() { "cert_file" } else { "key_file" }));
        return None;
    };
    if clients != ClientCertificates::Ignored && ca_file.is_none() {
        mistakes.note(&entry.place, NEEDS_AUTHORITY);
        return None;
    }
    let options = TlsOptions {
        ca_file,
        clients,
        handshake_first,
        min_version,
        timeout,
        ..TlsOptions::new(cert_file, key_file)
    };
    if let Err(error) = options.check() {
        mistakes.note(&entry.place, explain(&error));
    }
    Some(options)
}

/// nats-server would go by the authorities of the system, which sign for everybody.
const NEEDS_AUTHORITY: &str =
    "'verify' and 'verify_and_map' need 'ca_file' in TLS configuration on this server";

fn read_key(
    entry: &Entry,
    section_name: &str,
    section: &mut Section,
    ignored: &mut Vec<String>,
    mistakes: &mut Mistakes,
) {
    let refuse = |mistakes: &mut Mistakes, reason: &str| {
        mistakes.note(&entry.place, format!("{:?} is not supported by this server: {reason}", entry.key));
    };
    let path = |mistakes: &mut Mistakes| mistakes.text(entry).map(PathBuf::from);
    match entry.key.to_ascii_lowercase().as_str() {
        "cert_file" => section.cert_file = path(mistakes),
        "key_file" => section.key_file = path(mistakes),
        "ca_file" => section.ca_file = path(mistakes),
        "verify" => {
            if mistakes.bool(entry) == Some(true) && section.clients == ClientCertificates::Ignored {
                section.clients = ClientCertificates::Required;
            }
        }
        "verify_and_map" => {
            if mistakes.bool(entry) == Some(true) {
                section.clients = ClientCertificates::Mapped;
            }
        }
        "timeout" => {
            if let Some(timeout) = mistakes.duration(entry).filter(|timeout| !timeout.is_zero()) {
                section.timeout = timeout;
            }
        }
        "handshake_first" | "first" | "immediate" => {
            if let Some(first) = handshake_first(entry, mistakes) {
                section.handshake_first = first;
            }
        }
        "min_version" => match mistakes.text(entry).as_deref() {
            None => {}
            Some("1.2") => section.min_version = TlsVersion::V12,
            Some("1.3") => section.min_version = TlsVersion::V13,
            Some(old @ ("1.0" | "1.1")) => mistakes
                .note(&entry.place, format!("error parsing tls config: unsupported TLS version: TLS {old}")),
            Some(other) => {
                mistakes.note(&entry.place, format!("error parsing tls config: unknown version: {other}"))
            }
        },
        // About connections that a server makes, or a choice among ciphers that are all good ones here.
        "insecure" | "cipher_suites" | "curve_preferences" => {
            ignored.push(format!("{section_name}.{}", entry.key));
        }
        "connection_rate_limit" => {
            refuse(mistakes, "it does not limit the handshakes of all clients together")
        }
        "pinned_certs" | "certs" if says_nothing(&entry.node) => {}
        "ocsp_peer" | "allow_insecure_cipher_suites" if entry.node.value == Value::Bool(false) => {}
        "pinned_certs" | "ocsp_peer" | "verify_cert_and_check_known_urls" => {
            refuse(mistakes, "certificates are good that an authority in ca_file has signed")
        }
        "cert_store"
        | "cert_match_by"
        | "cert_match"
        | "ca_certs_match"
        | "cert_match_skip_invalid"
        | "certs" => refuse(mistakes, "there is one certificate, in cert_file"),
        "allow_insecure_cipher_suites" => refuse(mistakes, "it has none that are insecure"),
        _ if entry.is_variable => {}
        _ => {
            mistakes.note(&entry.place, format!("error parsing tls config, unknown field {:?}", entry.key));
        }
    }
}

fn handshake_first(entry: &Entry, mistakes: &mut Mistakes) -> Option<HandshakeFirst> {
    match &entry.node.value {
        Value::Bool(true) => Some(HandshakeFirst::Always),
        Value::Bool(false) => Some(HandshakeFirst::Off),
        Value::Text(text) if text.eq_ignore_ascii_case("auto") => Some(HandshakeFirst::AUTO),
        Value::Text(text) => match super::read::duration(text) {
            Some(wait) if !wait.is_zero() => Some(HandshakeFirst::Within(wait)),
            Some(_) => Some(HandshakeFirst::Off),
            None => {
                let field = &entry.key;
                mistakes.note(&entry.place, format!("field {field:?}'s value {text:?} is invalid"));
                None
            }
        },
        other => {
            let (field, kind) = (&entry.key, if other.kind() == "integer" { "int64" } else { other.kind() });
            mistakes
                .note(&entry.place, format!("field {field:?} should be a boolean or a string, got {kind}"));
            None
        }
    }
}

/// What the flags make of what the file says.
///
/// # Errors
/// Flags that need others, and files that cannot be used.
pub(super) fn apply(flags: &Flags, tls: &mut Option<TlsOptions>) -> Result<(), SettingsError> {
    let given = &flags.tls;
    let wanted = given.on == Some(true) || given.verify == Some(true);
    if !wanted && given.cert.is_none() && given.key.is_none() && given.ca.is_none() {
        return Ok(());
    }
    let (cert, key) = match &tls {
        Some(file) => (Some(&file.cert_file), Some(&file.key_file)),
        None => (None, None),
    };
    let cert = given.cert.as_ref().or(cert);
    let cert = cert.ok_or(SettingsError::Together("TLS Server certificate must be present and valid"))?;
    let key = given.key.as_ref().or(key);
    let key = key.ok_or(SettingsError::Together("TLS Server private key must be present and valid"))?;
    let mut options = TlsOptions {
        cert_file: cert.clone(),
        key_file: key.clone(),
        ..tls.take().unwrap_or_else(|| TlsOptions::new("", ""))
    };
    options.ca_file = given.ca.clone().or(options.ca_file);
    if given.verify == Some(true) && options.clients == ClientCertificates::Ignored {
        options.clients = ClientCertificates::Required;
    }
    if options.clients != ClientCertificates::Ignored && options.ca_file.is_none() {
        return Err(SettingsError::Together("--tlsverify needs --tlscacert on this server"));
    }
    options.check().map_err(|error| SettingsError::Tls(explain(&error)))?;
    *tls = Some(options);
    Ok(())
}

/// In nats-server's words, where it has the same to say.
fn explain(error: &TlsError) -> String {
    const PAIR: &str = "error parsing X509 certificate/key pair";
    match error {
        TlsError::File { path, setting, source } => {
            let is_authority = setting.ends_with("ca_file");
            let prefix = if is_authority { String::new() } else { format!("{PAIR}: ") };
            match source {
                TlsFileError::Read(cause) => {
                    format!("{prefix}open {}: {}", path.display(), describe(cause))
                }
                _ if is_authority => "failed to parse root ca certificate".to_owned(),
                TlsFileError::Content { expected } => {
                    format!("{prefix}{} is not PEM with {expected}", path.display())
                }
                other => format!("{prefix}{}: {other}", path.display()),
            }
        }
        TlsError::Unusable { source, .. } => format!("{PAIR}: {source}"),
        other => crate::failure::chain(other),
    }
}
