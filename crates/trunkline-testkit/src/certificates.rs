//! Certificates for tests of TLS: an authority made for one test, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _};
use tempfile::TempDir;

use crate::servers::temporary_directory;

/// What a test says of a certificate.
pub use rcgen::{CertificateParams, DnType, SanType};

/// A certificate authority, with the files of everything it signs. They go when it is dropped.
pub struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// File of the certificate.
    pub cert_file: PathBuf,
    /// File of the private key.
    pub key_file: PathBuf,
    /// The public key with its kind (SubjectPublicKeyInfo), DER.
    pub public_key: Vec<u8>,
}

impl Authority {
    /// Makes an authority that nobody else trusts.
    pub fn make() -> Authority {
        let directory = temporary_directory();
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Trunkline test authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.self_signed(&key).expect("an authority signs itself");
        write(&directory.path().join("ca.pem"), &certificate.pem());
        Authority { directory, issuer: Issuer::new(params, key) }
    }

    /// File of the authority's own certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Signs a certificate for these names and IP addresses; the files are called after the first.
    pub fn sign(&self, names: &[&str]) -> Certificate {
        self.sign_with(names, |_| {})
    }

    /// As [`Authority::sign`], with what `change` makes of it: another subject, another time.
    pub fn sign_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let file = |kind: &str| self.directory.path().join(format!("{}.{kind}.pem", names[0]));
        let (cert_file, key_file) = (file("cert"), file("key"));
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new(names.clone()).expect("the test's names are valid");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs");
        write(&cert_file, &certificate.pem());
        write(&key_file, &key.serialize_pem());
        Certificate { cert_file, key_file, public_key: key.subject_public_key_info() }
    }
}

fn write(path: &Path, content: &str) {
    fs::write(path, content).expect("a temporary directory takes files");
}
