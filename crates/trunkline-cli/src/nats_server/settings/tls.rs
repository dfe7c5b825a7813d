//! Sections `tls`, of the server and of WebSocket: which certificate is shown, and which is asked for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use trunkline::config::{HandshakeFirst, TlsVersion};
use trunkline_server::{CertificateFiles, ClientCertificates, TlsError, TlsFileError, TlsOptions};

use super::super::conf::{Entry, Node, Value};
use super::super::flags::Flags;
use super::read::Mistakes;
use super::{SettingsError, describe};

/// What a section says, in any order.
struct Section {
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    /// Pairs of files, in the place of the two above.
    certs: Vec<CertificateFiles>,
    ca_file: Option<PathBuf>,
    pinned: BTreeSet<String>,
    cipher_suites: Vec<String>,
    groups: Vec<String>,
    handshake_rate: Option<u32>,
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
        certs: Vec::new(),
        ca_file: None,
        pinned: BTreeSet::new(),
        cipher_suites: Vec::new(),
        groups: Vec::new(),
        handshake_rate: None,
        clients: ClientCertificates::Ignored,
        handshake_first: unset.handshake_first,
        min_version: unset.min_version,
        timeout: unset.timeout,
    };
    for inner in &map.entries {
        read_key(inner, &entry.key, &mut section, ignored, mistakes);
    }
    let mut certs = std::mem::take(&mut section.certs);
    if !certs.is_empty() {
        if section.cert_file.is_some() || section.key_file.is_some() {
            let which = if section.cert_file.is_some() { "cert_file" } else { "key_file" };
            let text =
                format!("error parsing tls config, cannot combine '{which}' option with 'certs' option");
            mistakes.note(&entry.place, text);
            return None;
        }
        let first = certs.remove(0);
        (section.cert_file, section.key_file) = (Some(first.cert_file), Some(first.key_file));
    }
    let (cert_file, key_file) = (section.cert_file, section.key_file);
    let missing = |what| format!("missing '{what}' in TLS configuration");
    let (Some(cert_file), Some(key_file)) = (&cert_file, &key_file) else {
        mistakes.note(&entry.place, missing(if cert_file.is_none() { "cert_file" } else { "key_file" }));
        return None;
    };
    if section.clients != ClientCertificates::Ignored && section.ca_file.is_none() {
        mistakes.note(&entry.place, NEEDS_AUTHORITY);
        return None;
    }
    if section.clients == ClientCertificates::Ignored && !section.pinned.is_empty() {
        mistakes.note(&entry.place, PINNED_NEEDS_VERIFY);
        return None;
    }
    let options = TlsOptions {
        others: certs,
        ca_file: section.ca_file,
        clients: section.clients,
        pinned: section.pinned,
        cipher_suites: section.cipher_suites,
        groups: section.groups,
        handshake_rate: section.handshake_rate,
        handshake_first: section.handshake_first,
        min_version: section.min_version,
        timeout: section.timeout,
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

/// nats-server would ask nobody for a certificate, and then turn everybody away who has shown none.
const PINNED_NEEDS_VERIFY: &str = "'pinned_certs' needs 'verify' or 'verify_and_map' in TLS configuration";

/// What a key that certificates are pinned to looks like: SHA-256 in hexadecimal digits.
const PIN_DIGITS: usize = 64;

/// Ciphers that nats-server has and takes for good ones, and that this server has not.
const NOT_HERE: [&str; 4] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];

/// Ciphers that nats-server only takes where it is told to.
const INSECURE: [&str; 11] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
];

/// Groups by nats-server's names and by those of the standard, where they are here.
const GROUPS: [(&str, Option<&str>); 7] = [
    ("X25519", Some("x25519")),
    ("CurveP256", Some("secp256r1")),
    ("CurveP384", Some("secp384r1")),
    ("CurveP521", None),
    ("X25519MLKEM768", None),
    ("SecP256r1MLKEM768", None),
    ("SecP384r1MLKEM1024", None),
];

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
        // About connections that a server makes.
        "insecure" => {
            mistakes.bool(entry);
            ignored.push(format!("{section_name}.{}", entry.key));
        }
        "connection_rate_limit" => {
            // As on nats-server, less than 1 is no limit.
            let rate = mistakes.integer(entry).filter(|rate| *rate > 0);
            section.handshake_rate = rate.map(|rate| u32::try_from(rate).unwrap_or(u32::MAX));
        }
        "cipher_suites" => section.cipher_suites = cipher_suites(entry, mistakes).unwrap_or_default(),
        "curve_preferences" => section.groups = groups(entry, mistakes).unwrap_or_default(),
        "pinned_certs" => section.pinned = pinned(entry, mistakes).unwrap_or_default(),
        "certs" => section.certs = certificates(entry, mistakes),
        "ocsp_peer" | "allow_insecure_cipher_suites" if entry.node.value == Value::Bool(false) => {}
        "ocsp_peer" | "verify_cert_and_check_known_urls" => {
            refuse(mistakes, "certificates are good that an authority in ca_file has signed")
        }
        "cert_store" | "cert_match_by" | "cert_match" | "ca_certs_match" | "cert_match_skip_invalid" => {
            refuse(mistakes, "certificates are files")
        }
        "allow_insecure_cipher_suites" => refuse(mistakes, "it has none that are insecure"),
        _ if entry.is_variable => {}
        _ => {
            mistakes.note(&entry.place, format!("error parsing tls config, unknown field {:?}", entry.key));
        }
    }
}

/// Pairs of files, each a certificate and its key.
fn certificates(entry: &Entry, mistakes: &mut Mistakes) -> Vec<CertificateFiles> {
    const WRONG: &str = "error parsing certificates config";
    let Value::List(list) = &entry.node.value else {
        mistakes.note(&entry.place, format!("{WRONG}: unsupported type {}", entry.node.value.kind()));
        return Vec::new();
    };
    let mut pair = |node: &Node| {
        let Value::Map(map) = &node.value else {
            mistakes.note(&node.place, format!("{WRONG}: unsupported type {}", node.value.kind()));
            return None;
        };
        let (mut cert_file, mut key_file) = (None, None);
        for inner in &map.entries {
            match inner.key.to_ascii_lowercase().as_str() {
                "cert_file" => cert_file = mistakes.word(inner),
                "key_file" => key_file = mistakes.word(inner),
                _ => mistakes.note(
                    &inner.place,
                    format!("error parsing tls certs config, unknown field {:?}", inner.key),
                ),
            }
        }
        let Some((cert_file, key_file)) = cert_file.zip(key_file) else {
            mistakes
                .note(&node.place, format!("{WRONG}: both 'cert_file' and 'key_file' options are required"));
            return None;
        };
        Some(CertificateFiles { cert_file: cert_file.into(), key_file: key_file.into() })
    };
    list.iter().filter_map(&mut pair).collect()
}

/// Names out of a list that has at least one.
fn names(entry: &Entry, mistakes: &mut Mistakes) -> Option<Vec<String>> {
    mistakes.list(entry)?;
    let names = mistakes.texts(entry)?;
    if names.is_empty() {
        mistakes.note(&entry.place, format!("error parsing tls config, '{}' cannot be empty", entry.key));
        return None;
    }
    Some(names)
}

fn cipher_suites(entry: &Entry, mistakes: &mut Mistakes) -> Option<Vec<String>> {
    let names = names(entry, mistakes)?;
    let known = TlsOptions::known_cipher_suites();
    let mut is_right = true;
    for name in &names {
        let problem = if INSECURE.contains(&name.as_str()) {
            format!(
                "insecure cipher suites configured without 'allow_insecure_cipher_suites' option set: {name}"
            )
        } else if !known.contains(name) && !NOT_HERE.contains(&name.as_str()) {
            format!("unrecognized cipher {name}")
        } else {
            continue;
        };
        is_right = false;
        mistakes.note(&entry.place, problem);
    }
    // What is left of them would be what nobody has asked for: all.
    if is_right && !names.iter().any(|name| known.contains(name)) {
        is_right = false;
        mistakes.note(&entry.place, "none of these cipher suites is supported by this server");
    }
    is_right.then_some(names)
}

fn groups(entry: &Entry, mistakes: &mut Mistakes) -> Option<Vec<String>> {
    let mut groups = Vec::new();
    for name in names(entry, mistakes)? {
        match GROUPS.iter().find(|(known, _)| *known == name) {
            Some((_, group)) => groups.extend(group.map(str::to_owned)),
            None => mistakes.note(&entry.place, format!("unrecognized curve preference {name}")),
        }
    }
    if groups.is_empty() {
        mistakes.note(&entry.place, "none of these curve preferences is supported by this server");
        return None;
    }
    Some(groups)
}

fn pinned(entry: &Entry, mistakes: &mut Mistakes) -> Option<BTreeSet<String>> {
    const KEY: &str = "hex-encoded sha256 of DER encoded SubjectPublicKeyInfo";
    if !matches!(entry.node.value, Value::List(_)) {
        let text = format!("error parsing tls config, expected 'pinned_certs' to be a list of {KEY}");
        mistakes.note(&entry.place, text);
        return None;
    }
    let keys: Vec<String> = mistakes.texts(entry)?.iter().map(|key| key.to_ascii_lowercase()).collect();
    let is_key = |key: &&String| key.len() == PIN_DIGITS && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(key) = keys.iter().find(|key| !is_key(key)) {
        let text = format!("error parsing tls config, 'pinned_certs' key {key} does not look like {KEY}");
        mistakes.note(&entry.place, text);
        return None;
    }
    Some(keys.into_iter().collect())
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
