//! Whose certificate is believed when a bus is asked over HTTPS: one that an authority has signed, or the very one that the
//! server of this machine is configured with.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::unverified::Unverified;

/// What to do about a certificate that is not believed.
pub(crate) const UNTRUSTED: &str = "--tls-ca takes a PEM file with the authority that has signed the server's certificate, or with that \
     certificate itself; it has to be for the host of the address";

/// Whom a command believes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust {
    /// Authorities in the place of those of the system (`--tls-ca`).
    pub(crate) ca_file: Option<PathBuf>,
    /// The file of the server's own certificate, where that is known here: of `up` on this machine, or as configured.
    pub(crate) own_file: Option<PathBuf>,
}

/// `--tls-ca` names no certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TrustError {
    #[error("cannot read {} (--tls-ca)", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not PEM (--tls-ca)", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{} has no certificate (--tls-ca)", path.display())]
    Empty { path: PathBuf },
}

impl Trust {
    /// What to connect with.
    ///
    /// # Errors
    /// See [`TrustError`]. A server's own certificate that cannot be read is merely not believed.
    pub(crate) fn client(&self) -> Result<ClientConfig, TrustError> {
        let given = self.ca_file.as_deref().map(read).transpose()?.unwrap_or_default();
        let roots = OnceLock::new();
        if self.ca_file.is_some() {
            let mut store = RootCertStore::empty();
            // A certificate that is no authority's is believed as itself, below.
            store.add_parsable_certificates(given.iter().cloned());
            let _ = roots.set(Arc::new(store));
        }
        let verifier =
            Verifier { given, roots, own_file: self.own_file.clone(), signatures: Unverified::default() };
        let provider = Arc::new(ring::default_provider());
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the versions of TLS that rustls does")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth())
    }
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let path_of = || path.to_owned();
    let bytes = std::fs::read(path).map_err(|source| TrustError::Io { path: path_of(), source })?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|source| TrustError::Pem { path: path_of(), source })?;
    match certificates.is_empty() {
        true => Err(TrustError::Empty { path: path_of() }),
        false => Ok(certificates),
    }
}

/// Why the server's certificate is not believed, if that is what this error comes from.
pub(crate) fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        // What an error of I/O was made from is not among its sources.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = error.downcast_ref().or_else(|| inner?.downcast_ref());
        if let Some(rustls::Error::InvalidCertificate(reason)) = found {
            return Some(match reason {
                CertificateError::UnknownIssuer => "nobody who is trusted here has signed it".to_owned(),
                // What rustls has no name for is told as the verifier's debug text.
                CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                    "it has signed itself".to_owned()
                }
                other => other.to_string(),
            });
        }
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[derive(Debug)]
struct Verifier {
    /// The certificates of `--tls-ca`.
    given: Vec<CertificateDer<'static>>,
    /// Authorities. Those of the system are read when they are first needed.
    roots: OnceLock<Arc<RootCertStore>>,
    own_file: Option<PathBuf>,
    signatures: Unverified,
}

impl Verifier {
    /// The server's own certificate is believed whatever name it is asked by: often it is for the name that clients
    /// elsewhere know, while a command asks the loopback. It is read each time, as a reload replaces it. That the server
    /// has the key to it is proven by the handshake.
    fn is_own(&self, shown: &CertificateDer<'_>) -> bool {
        let own = self.own_file.as_deref().and_then(|path| CertificateDer::from_pem_file(path).ok());
        own.is_some_and(|own| own == *shown)
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let of_system = || {
            let mut store = RootCertStore::empty();
            // Where the system has no list, nobody is trusted, and that is said.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Arc::new(store)
        };
        self.roots.get_or_init(of_system).clone()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.is_own(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        // One that nobody but itself has signed is given as such.
        if self.given.contains(end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let provider = Arc::new(ring::default_provider());
        let by_authority = WebPkiServerVerifier::builder_with_provider(self.roots(), provider).build();
        match by_authority {
            Ok(verifier) => verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, now),
            // There are no authorities.
            Err(_) => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verifier().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verifier().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.verifier().supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_however_deep_it_lies() {
        let reason = |error| rustls::Error::InvalidCertificate(error);
        let inner = io::Error::other(reason(CertificateError::UnknownIssuer));
        let outer = io::Error::other(inner);
        assert_eq!(refusal(&outer).unwrap(), "nobody who is trusted here has signed it");
        assert!(refusal(&reason(CertificateError::Expired)).is_some());
        assert!(refusal(&io::Error::other("something else")).is_none());
        assert!(refusal(&io::Error::other(rustls::Error::DecryptError)).is_none());
    }
}
