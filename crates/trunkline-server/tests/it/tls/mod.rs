//! TLS with stock clients, with raw ones that do it wrong, and with certificates that change.

mod certificates;
pub(crate) mod clients;
mod handshake;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use trunkline::backend::memory::Hub;
use trunkline_server::{Server, ServerOptions, TlsOptions};
use trunkline_testkit::Authority;
use trunkline_testkit::certificates::Certificate;

use super::client::{Raw, within};
use super::fixture::options;

/// A certificate for this machine, and who has signed it.
pub(crate) struct Trust {
    pub(crate) authority: Authority,
    pub(crate) server: Certificate,
}

impl Trust {
    pub(crate) fn make() -> Self {
        let authority = Authority::make();
        let server = authority.sign(&["localhost", "127.0.0.1"]);
        Self { authority, server }
    }

    pub(crate) fn options(&self) -> TlsOptions {
        TlsOptions::new(&self.server.cert_file, &self.server.key_file)
    }

    /// What a client goes by that trusts the authority, and shows this certificate.
    pub(crate) fn client(&self, own: Option<&Certificate>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.authority.ca_file()).expect("the authority's file");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = vec![CertificateDer::from_pem_file(&own.cert_file).expect("a certificate")];
                let key = PrivateKeyDer::from_pem_file(&own.key_file).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        })
    }
}

/// A server on free ports with TLS and what `change` makes of it.
pub(crate) async fn server(tls: TlsOptions, change: impl FnOnce(&mut ServerOptions)) -> Server {
    let with = |options: &mut ServerOptions| {
        options.tls = Some(tls);
        change(options);
    };
    Server::start(options(Arc::new(Hub::default()), with)).await.expect("free ports and a valid certificate")
}

/// A client of raw bytes inside TLS.
pub(crate) struct Sealed {
    pub(crate) stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Sealed {
    /// Reads INFO, then does the handshake.
    pub(crate) async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        // Byte by byte, as what comes behind the line belongs to TLS.
        let mut info = Vec::new();
        while !info.ends_with(b"\r\n") {
            info.push(within("INFO", socket.read_u8()).await?);
        }
        assert!(info.starts_with(b"INFO {"), "{}", String::from_utf8_lossy(&info));
        Self::first(socket, config).await
    }

    /// Does the handshake, and reads nothing before.
    pub(crate) async fn first(socket: TcpStream, config: Arc<ClientConfig>) -> std::io::Result<Self> {
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = within("the handshake", TlsConnector::from(config).connect(name, socket)).await?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("send", self.stream.write_all(bytes.as_ref())).await.expect("the connection stands");
        within("send", self.stream.flush()).await.expect("the connection stands");
    }

    /// The next line, without its end; `None` when the server has ended.
    pub(crate) async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Some(line);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    pub(crate) async fn take(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            assert!(self.fill().await, "closed after {} of {n} bytes", self.buffer.len());
        }
        self.buffer.drain(..n).collect()
    }

    async fn fill(&mut self) -> bool {
        let mut bytes = vec![0; 64 << 10];
        let n = within("bytes", self.stream.read(&mut bytes)).await.unwrap_or(0);
        self.buffer.extend_from_slice(&bytes[..n]);
        n > 0
    }

    /// CONNECT with these fields and PING; the first line that comes back.
    pub(crate) async fn hello(&mut self, fields: &str) -> Option<String> {
        let comma = if fields.is_empty() { "" } else { "," };
        self.send(format!("CONNECT {{\"verbose\":false,\"pedantic\":false{comma}{fields}}}\r\nPING\r\n"))
            .await;
        self.line().await
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// The line that a server sends first.
pub(crate) async fn info(address: SocketAddr) -> serde_json::Value {
    let line = Raw::without_info(address).await.line().await;
    serde_json::from_str(line.strip_prefix("INFO ").expect("INFO")).expect("JSON")
}
