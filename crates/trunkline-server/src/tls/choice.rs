//! What a handshake may choose from: certificates by the name that the client asks for, ciphers and groups by their names.

use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{NamedGroup, SupportedCipherSuite};

use super::{TlsError, TlsOptions};

/// Several certificates, of which each client is shown one.
#[derive(Debug)]
pub(super) struct Certificates {
    /// At least one.
    all: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    pub(super) fn new(all: Vec<Arc<CertifiedKey>>) -> Self {
        Self { all }
    }
}

impl ResolvesServerCert for Certificates {
    /// The first that is good for the name that the client asks for, among those whose signatures it understands; else the
    /// first of all, as on nats-server.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let suits = |certificate: &&Arc<CertifiedKey>| {
            certificate.key.choose_scheme(hello.signature_schemes()).is_some()
                && name.as_ref().is_none_or(|name| is_for(certificate, name))
        };
        self.all.iter().find(suits).or(self.all.first()).cloned()
    }
}

fn is_for(certificate: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let parsed = certificate.end_entity_cert().and_then(ParsedCertificate::try_from);
    parsed.and_then(|parsed| verify_server_name(&parsed, name)).is_ok()
}

/// The ciphers and groups that the options leave. Those of TLS 1.3 stay, all of which are good, as on nats-server.
///
/// # Errors
/// Names that leave nothing.
pub(super) fn provider(options: &TlsOptions) -> Result<CryptoProvider, TlsError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if !options.cipher_suites.is_empty() {
        let is_named = |suite: &SupportedCipherSuite| options.cipher_suites.contains(&suite_name(suite));
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || is_named(suite));
    }
    if !options.groups.is_empty() {
        // In the order in which they are named, which is the order of preference.
        let known = std::mem::take(&mut provider.kx_groups);
        let named = |name: &String| {
            known.iter().find(|group| group_name(group.name()) == Some(name.as_str())).copied()
        };
        provider.kx_groups = options.groups.iter().filter_map(named).collect();
        if provider.kx_groups.is_empty() {
            return Err(TlsError::Groups { named: options.groups.join(", ") });
        }
    }
    Ok(provider)
}

/// By its name in the standard.
pub(crate) fn suite_name(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
}

fn group_name(group: NamedGroup) -> Option<&'static str> {
    match group {
        NamedGroup::X25519 => Some("x25519"),
        NamedGroup::secp256r1 => Some("secp256r1"),
        NamedGroup::secp384r1 => Some("secp384r1"),
        _ => None,
    }
}
