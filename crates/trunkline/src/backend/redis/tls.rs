//! TLS to Redis: whom to trust, and with which certificate to introduce oneself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

/// Certificates for `rediss://`, all in PEM. Section `messaging.redis_tls`.
///
/// A server's certificate has to be for the host by which it is reached: the one in the URL; of nodes of a cluster, and of
/// a master that sentinels name, the one that they announce (`cluster-announce-hostname`, `replica-announce-ip`), an IP
/// address unless they are told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisTls {
    /// Certificate authorities that the servers' certificates must come from; those of the system unless set.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain with which the bus introduces itself; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Private key of the certificate.
    pub key_file: Option<PathBuf>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisTlsError {
    /// A file cannot be used.
    #[error("{} ({setting}) cannot be used", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// The key of the configuration that names it.
        setting: &'static str,
        /// What is wrong with it.
        source: RedisTlsFileError,
    },
    /// Only one of certificate and key is given.
    #[error("{missing} is not set, but {given} is")]
    Pair {
        /// The key that is set.
        given: &'static str,
        /// The key that is not.
        missing: &'static str,
    },
    /// Certificate and key do not belong together, or are of a kind that TLS does not know.
    #[error("the certificate in {} and the key in {} cannot be used together (messaging.redis_tls)", cert.display(), key.display())]
    Unusable {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// The system has no list of authorities.
    #[error("no certificate authority of the system can be read; messaging.redis_tls.ca_file names others")]
    NoRoots,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisTlsFileError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is not PEM, or not what it should be.
    #[error("it is not PEM with {expected}")]
    Content {
        /// What should stand in it.
        expected: &'static str,
    },
}

const CA: &str = "messaging.redis_tls.ca_file";
const CERT: &str = "messaging.redis_tls.cert_file";
const KEY: &str = "messaging.redis_tls.key_file";

impl RedisTls {
    /// What connections are made with.
    pub(super) fn connector(&self) -> Result<TlsConnector, RedisTlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the versions of TLS that rustls does")
            .with_root_certificates(self.roots()?);
        let config = match (&self.cert_file, &self.key_file) {
            (None, None) => config.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert, CERT)?;
                let secret = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| unusable(key, KEY, "a private key", error))?;
                config.with_client_auth_cert(chain, secret).map_err(|source| RedisTlsError::Unusable {
                    cert: cert.clone(),
                    key: key.clone(),
                    source,
                })?
            }
            (Some(_), None) => return Err(RedisTlsError::Pair { given: CERT, missing: KEY }),
            (None, Some(_)) => return Err(RedisTlsError::Pair { given: KEY, missing: CERT }),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn roots(&self) -> Result<RootCertStore, RedisTlsError> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca_file else {
            // Single entries of the system's list that cannot be read are nobody's fault here.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return if roots.is_empty() { Err(RedisTlsError::NoRoots) } else { Ok(roots) };
        };
        for certificate in certificates(path, CA)? {
            roots.add(certificate).map_err(|_| RedisTlsError::File {
                path: path.clone(),
                setting: CA,
                source: RedisTlsFileError::Content { expected: CERTIFICATES },
            })?;
        }
        Ok(roots)
    }
}

const CERTIFICATES: &str = "at least one certificate";

fn certificates(path: &Path, setting: &'static str) -> Result<Vec<CertificateDer<'static>>, RedisTlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unusable(path, setting, CERTIFICATES, error))?;
    match certificates.is_empty() {
        true => Err(unusable(path, setting, CERTIFICATES, PemError::NoItemsFound)),
        false => Ok(certificates),
    }
}

fn unusable(path: &Path, setting: &'static str, expected: &'static str, error: PemError) -> RedisTlsError {
    let source = match error {
        PemError::Io(error) => RedisTlsFileError::Read(error),
        _ => RedisTlsFileError::Content { expected },
    };
    RedisTlsError::File { path: path.to_owned(), setting, source }
}

/// The error with its causes on one line: what is shown where the causes are not.
pub(super) fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_name_file_and_setting() {
        let directory = tempfile::tempdir().unwrap();
        let (missing, odd) = (directory.path().join("missing.pem"), directory.path().join("odd.pem"));
        std::fs::write(&odd, "no certificate").unwrap();
        let shown = |tls: RedisTls| {
            let error = tls.connector().err().expect("it cannot be used");
            in_full(&error)
        };
        for path in [&missing, &odd] {
            let text = shown(RedisTls { ca_file: Some(path.clone()), ..RedisTls::default() });
            assert!(text.contains(CA) && text.contains(path.to_str().unwrap()), "{text}");
        }
        let text = shown(RedisTls { cert_file: Some(odd.clone()), ..RedisTls::default() });
        assert!(text.contains(CERT) && text.contains(KEY), "{text}");
        let text = shown(RedisTls { key_file: Some(odd), ..RedisTls::default() });
        assert!(text.contains(CERT) && text.contains(KEY), "{text}");
    }
}
