//! From files to what rustls goes by.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use trunkline::config::TlsVersion;

use super::choice::Certificates;
use super::{CA, CERT, KEY, TlsError, TlsFileError, TlsOptions, VERIFY, certificate, choice};

const CERTIFICATES: &str = "at least one certificate";

/// Reads everything and puts it together; also until when the certificate is good. Warns of certificates that clients will not accept for their time.
pub(super) fn load(options: &TlsOptions) -> Result<(Arc<ServerConfig>, Option<jiff::Timestamp>), TlsError> {
    let provider = Arc::new(choice::provider(options)?);
    let mut shown = vec![certified(&options.cert_file, &options.key_file, &provider)?];
    for other in &options.others {
        shown.push(certified(&other.cert_file, &other.key_file, &provider)?);
    }
    let versions: &[_] = match options.min_version {
        TlsVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V13 => &[&rustls::version::TLS13],
    };
    let together = |source| TlsError::Unusable {
        cert: options.cert_file.clone(),
        key: options.key_file.clone(),
        source,
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(together)?;
    let builder = match (options.verifies(), options.ca_file.as_deref()) {
        (false, None) => builder.with_no_client_auth(),
        (false, Some(path)) => {
            // Of no use yet, and wrong all the same: it is told now and not when certificates are asked for.
            authorities(path)?;
            builder.with_no_client_auth()
        }
        // Without authorities to go by, anybody could be anybody.
        (true, None) => return Err(TlsError::Incomplete { given: VERIFY, missing: CA }),
        (true, Some(path)) => {
            let roots = Arc::new(authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            let not_authority = |error: rustls::server::VerifierBuilderError| TlsError::File {
                path: path.to_owned(),
                setting: CA,
                source: TlsFileError::Authority(rustls::Error::General(error.to_string())),
            };
            builder.with_client_cert_verifier(verifier.map_err(not_authority)?)
        }
    };
    let not_after = shown.first().and_then(|first| first.cert.first()).and_then(certificate::not_after);
    let config = builder.with_cert_resolver(Arc::new(Certificates::new(shown)));
    Ok((Arc::new(config), not_after))
}

/// A certificate with its key, which has to be its own.
fn certified(
    cert_file: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(cert_file, CERT)?;
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| unusable(key_file, KEY, "a private key", error))?;
    for (n, certificate) in chain.iter().enumerate() {
        certificate::warn_of_time(certificate, cert_file, n);
    }
    let together = |source| TlsError::Unusable { cert: cert_file.into(), key: key_file.into(), source };
    CertifiedKey::from_der(chain, key, provider).map(Arc::new).map_err(together)
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, CA)? {
        roots.add(certificate).map_err(|error| TlsError::File {
            path: path.to_owned(),
            setting: CA,
            source: TlsFileError::Authority(error),
        })?;
    }
    Ok(roots)
}

fn certificates(path: &Path, setting: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unusable(path, setting, CERTIFICATES, error))?;
    match certificates.is_empty() {
        true => Err(unusable(path, setting, CERTIFICATES, PemError::NoItemsFound)),
        false => Ok(certificates),
    }
}

fn unusable(path: &Path, setting: &'static str, expected: &'static str, error: PemError) -> TlsError {
    let source = match error {
        PemError::Io(error) => TlsFileError::Read(error),
        _ => TlsFileError::Content { expected },
    };
    TlsError::File { path: path.to_owned(), setting, source }
}
