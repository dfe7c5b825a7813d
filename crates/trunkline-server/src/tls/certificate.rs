//! What a certificate says: of its owner, and of its time.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::oid_registry::{
    OID_X509_COMMON_NAME, OID_X509_COUNTRY_NAME, OID_X509_LOCALITY_NAME, OID_X509_ORGANIZATION_NAME,
    OID_X509_ORGANIZATIONAL_UNIT, OID_X509_POSTAL_CODE, OID_X509_SERIALNUMBER,
    OID_X509_STATE_OR_PROVINCE_NAME, OID_X509_STREET_ADDRESS, Oid,
};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer as _, GeneralName, X509Certificate, X509Name};

/// A certificate that ends within so many days is worth a word.
const WARN_DAYS: i64 = 14;

/// The usual parts of a distinguished name, in their usual order.
static USUAL: [(Oid<'static>, &str); 9] = [
    (OID_X509_COUNTRY_NAME, "C"),
    (OID_X509_ORGANIZATION_NAME, "O"),
    (OID_X509_ORGANIZATIONAL_UNIT, "OU"),
    (OID_X509_LOCALITY_NAME, "L"),
    (OID_X509_STATE_OR_PROVINCE_NAME, "ST"),
    (OID_X509_STREET_ADDRESS, "STREET"),
    (OID_X509_POSTAL_CODE, "POSTALCODE"),
    (OID_X509_COMMON_NAME, "CN"),
    (OID_X509_SERIALNUMBER, "SERIALNUMBER"),
];

/// Whose certificate a client has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    /// E-mail addresses, then DNS names, then URIs: the order in which nats-server looks for a user.
    pub(crate) names: Vec<String>,
    /// The subject, see [`canonical_subject`].
    pub(crate) subject: Option<String>,
}

impl Owner {
    /// `None` for what is no certificate, which the handshake would have refused.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let (mut mails, mut hosts, mut uris) = (Vec::new(), Vec::new(), Vec::new());
        if let Ok(Some(names)) = certificate.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::RFC822Name(mail) => mails.push((*mail).to_owned()),
                    GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    _ => {}
                }
            }
        }
        mails.append(&mut hosts);
        mails.append(&mut uris);
        Some(Self { names: mails, subject: subject(certificate.subject()) })
    }
}

fn subject(name: &X509Name<'_>) -> Option<String> {
    let mut parts = Vec::new();
    for attribute in name.iter_attributes() {
        let kind = match oid2abbrev(attribute.attr_type(), oid_registry()) {
            Ok(kind) => kind.to_owned(),
            Err(_) => attribute.attr_type().to_id_string(),
        };
        // A value that is no text names nobody, and leaving it out would name somebody else.
        parts.push((kind, attribute.as_str().ok()?.to_owned()));
    }
    join(parts)
}

/// A distinguished name in one form, whatever the order and the spaces of its parts; `None` for what is none. Text as in
/// RFC 2253, such as `CN=search,OU=tools,O=Example`.
pub(crate) fn canonical_subject(text: &str) -> Option<String> {
    let (mut parts, mut current) = (Vec::new(), String::new());
    let mut characters = text.chars();
    loop {
        match characters.next() {
            Some('\\') => {
                // The mark stays, so that what follows it separates nothing; it goes in `part`.
                current.push('\\');
                current.push(characters.next()?);
            }
            Some(',' | '+') => parts.push(part(&std::mem::take(&mut current))?),
            Some(other) => current.push(other),
            None => break,
        }
    }
    parts.push(part(&current)?);
    join(parts)
}

fn part(text: &str) -> Option<(String, String)> {
    let (kind, value) = text.split_once('=')?;
    let mut plain = String::new();
    let mut characters = value.trim().chars();
    while let Some(character) = characters.next() {
        plain.push(if character == '\\' { characters.next()? } else { character });
    }
    Some((kind.trim().to_owned(), plain))
}

fn join(mut parts: Vec<(String, String)>) -> Option<String> {
    for (kind, value) in &mut parts {
        kind.make_ascii_uppercase();
        if kind.is_empty() || value.is_empty() {
            return None;
        }
    }
    parts.sort_unstable();
    let texts = parts.into_iter().map(|(kind, value)| {
        let value = value.replace('\\', "\\\\").replace(',', "\\,").replace('+', "\\+");
        format!("{kind}={value}")
    });
    let joined = texts.collect::<Vec<_>>().join(",");
    (!joined.is_empty()).then_some(joined)
}

/// What tells a certificate from all others, as monitoring shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// As RFC 2253 writes it, the last part first.
    pub(crate) subject: String,
    /// SHA-256 of the public key with its algorithm, in hexadecimal digits.
    pub(crate) key: String,
    /// SHA-256 of the whole certificate.
    pub(crate) certificate: String,
}

impl Fingerprint {
    /// `None` for what is no certificate.
    pub(crate) fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = distinguished_name(certificate.subject());
        Some(Self {
            subject,
            key: sha256(certificate.tbs_certificate.subject_pki.raw),
            certificate: sha256(der),
        })
    }
}

/// A name as nats-server writes it: the usual parts in the opposite of their usual order, whatever their order in the
/// certificate, and those of one kind together; then the others.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let value = |attribute: &AttributeTypeAndValue<'_>| escaped(attribute.as_str().unwrap_or_default());
    let usual = USUAL.iter().rev().filter_map(|(oid, kind)| {
        let of_kind = name.iter_by_oid(oid).map(|attribute| format!("{kind}={}", value(attribute)));
        Some(of_kind.collect::<Vec<_>>().join("+")).filter(|parts| !parts.is_empty())
    });
    let others = name.iter_attributes().filter(|attribute| {
        let oid = attribute.attr_type();
        USUAL.iter().all(|(usual, _)| usual != oid)
    });
    let others = others.map(|attribute| {
        let kind = oid2abbrev(attribute.attr_type(), oid_registry()).map(str::to_owned);
        format!("{}={}", kind.unwrap_or_else(|_| attribute.attr_type().to_id_string()), value(attribute))
    });
    let mut others: Vec<String> = others.collect();
    others.reverse();
    usual.chain(others).collect::<Vec<_>>().join(",")
}

/// Text as a value in a distinguished name, RFC 2253 section 2.4.
fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(text.len());
    for (at, character) in text.chars().enumerate() {
        let is_marked = match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            '#' => at == 0,
            ' ' => at == 0 || at == last,
            _ => false,
        };
        if is_marked {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a certificate stands to the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Validity {
    Valid,
    EndsSoon,
    Expired,
    NotYet,
}

/// `now` is in seconds of Unix time, as the others.
fn validity(from: i64, until: i64, now: i64) -> Validity {
    match () {
        () if until < now => Validity::Expired,
        () if from > now => Validity::NotYet,
        () if until - now < WARN_DAYS * 24 * 60 * 60 => Validity::EndsSoon,
        () => Validity::Valid,
    }
}

/// Until when a certificate is good.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<jiff::Timestamp> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    jiff::Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

/// Tells the log of a certificate whose time is over, has not come, or is nearly over.
pub(super) fn warn_of_time(certificate: &CertificateDer<'_>, path: &Path, place: usize) {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return };
    let time = certificate.validity();
    let now = x509_parser::time::ASN1Time::now().timestamp();
    let (not_before, not_after, file) = (time.not_before, time.not_after, path.display());
    match validity(not_before.timestamp(), not_after.timestamp(), now) {
        Validity::Valid => {}
        Validity::EndsSoon => tracing::warn!(%file, place, %not_after, "the certificate expires soon"),
        Validity::Expired => {
            tracing::warn!(%file, place, %not_after, "the certificate has expired: clients will refuse it");
        }
        Validity::NotYet => {
            tracing::warn!(%file, place, %not_before, "the certificate is not valid yet: clients will refuse it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_warned_of_by_their_time() {
        const DAY: i64 = 24 * 60 * 60;
        let now = 1_800_000_000;
        let cases = [
            (-DAY, 90 * DAY, Validity::Valid),
            (-DAY, 13 * DAY, Validity::EndsSoon),
            (-90 * DAY, -1, Validity::Expired),
            (DAY, 90 * DAY, Validity::NotYet),
        ];
        for (from, until, expected) in cases {
            assert_eq!(validity(now + from, now + until, now), expected, "{from} {until}");
        }
    }

    #[test]
    fn a_subject_is_the_same_in_any_order() {
        let one = canonical_subject("CN=search, ou=tools,O=Example\\, Inc.").unwrap();
        assert_eq!(one, "CN=search,O=Example\\, Inc.,OU=tools");
        assert_eq!(canonical_subject("O=Example\\, Inc.,CN=search+OU=tools").unwrap(), one);
        assert_ne!(canonical_subject("CN=search,OU=tools").unwrap(), one);
        assert_ne!(canonical_subject("CN=SEARCH,OU=tools,O=Example\\, Inc.").unwrap(), one);
        for text in ["", "search", "CN=", "=x", "CN=a,", "CN=a\\"] {
            assert_eq!(canonical_subject(text), None, "{text:?}");
        }
    }
}
