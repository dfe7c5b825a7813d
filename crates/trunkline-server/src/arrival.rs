//! What comes before the session of a client where there is TLS or WebSocket: the handshakes, and the server's first line
//! among them.
//!
//! NATS puts INFO before the handshake, in plain text, and the client starts TLS behind it. `handshake_first` is the other
//! way round, and with a delay the client's first byte decides. See
//! <https://docs.nats.io/running-a-nats-service/configuration/securing_nats/tls#tls-first-handshake>.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use tokio::time::Instant;
use trunkline::config::HandshakeFirst;
use trunkline_protocol::ServerError;

use crate::client::{Client, Kind};
use crate::closed::Closed;
use crate::outbox::Ending;
use crate::shared::Shared;
use crate::socket::{Layer, Progress, Socket};
use crate::tls::{ClientCertificates, Fingerprint, Owner, Tls};
use crate::trace::about;
use crate::websocket::Gate;

/// The first byte of a TLS record that begins a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// A client that is refused for speaking no TLS is given so long to take the reason.
const REFUSAL_WITHIN: Duration = Duration::from_secs(1);

/// What a connection's encryption is, for monitoring, and whose certificate the client has shown.
#[derive(Debug, Clone)]
pub(crate) struct Secured {
    /// Such as `1.3`.
    pub(crate) version: &'static str,
    /// By its name in the standard.
    pub(crate) cipher: String,
    /// The handshake came before INFO.
    pub(crate) first: bool,
    pub(crate) owner: Option<Owner>,
    /// Each certificate that the client has shown, its own first.
    pub(crate) peers: Arc<[Fingerprint]>,
    /// Its owner is who the client is, whatever it says itself.
    pub(crate) is_mapped: bool,
}

/// Why a client never came to have a session.
#[derive(Debug, thiserror::Error)]
enum ArrivalError {
    #[error("the client speaks no TLS, and the server asks for it")]
    NotTls,
    #[error("more handshakes begin within a second than may")]
    Throttled,
    #[error("certificate not pinned")]
    NotPinned,
    #[error("the handshake did not end in time")]
    Timeout,
    #[error("the server has ended the connection")]
    Ended,
    #[error("the client has closed the connection")]
    Left,
    #[error("the handshake failed: {0}")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for ArrivalError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Left,
            _ => Self::Failed(error),
        }
    }
}

/// A client on its way in.
pub(crate) struct Arrival {
    server: Arc<Shared>,
    client: Arc<Client>,
    socket: Arc<Socket>,
}

impl Arrival {
    pub(crate) fn new(server: Arc<Shared>, client: Arc<Client>, socket: Arc<Socket>) -> Self {
        Self { server, client, socket }
    }

    /// Ends with the INFO on its way to the client, through whatever lies in between.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) async fn settle(self) -> Result<(), Closed> {
        let outcome = tokio::select! {
            outcome = self.welcome() => outcome,
            () = self.ended() => Err(ArrivalError::Ended),
        };
        let Err(error) = outcome else { return Ok(()) };
        match &error {
            // Of those who are throttled there are many, and their number is told.
            ArrivalError::Left | ArrivalError::Ended | ArrivalError::Throttled => {
                about!(debug, self.client, %error, "no session")
            }
            _ if self.server.refusals.may_tell(StdInstant::now()) => {
                about!(warn, self.client, %error, "no session");
            }
            _ => about!(debug, self.client, %error, "no session"),
        }
        match error {
            ArrivalError::Left => Err(Closed::ByClient),
            ArrivalError::Ended => Err(self.client.ending_reason().unwrap_or(Closed::Shutdown)),
            ArrivalError::NotTls => {
                // In plain text, as that is all that this client understands.
                let refuse = self.say(|out| ServerError::TlsRequired.write(out));
                let _ = tokio::time::timeout(REFUSAL_WITHIN, refuse).await;
                Err(Closed::Handshake)
            }
            ArrivalError::Throttled => {
                let refuse = self.say(|out| ServerError::Throttled.write(out));
                let _ = tokio::time::timeout(REFUSAL_WITHIN, refuse).await;
                Err(Closed::TooMany)
            }
            ArrivalError::NotPinned | ArrivalError::Timeout | ArrivalError::Failed(_) => {
                Err(Closed::Handshake)
            }
        }
    }

    /// Waits until the server ends the connection.
    async fn ended(&self) {
        while self.client.outbox.ending() == Ending::No {
            self.client.outbox.woken().await;
        }
    }

    async fn welcome(&self) -> Result<(), ArrivalError> {
        match &self.client.kind {
            Kind::WebSocket => self.welcome_web().await,
            Kind::Nats => match self.server.tls.clients.get() {
                Some(tls) => self.welcome_tls(&tls).await,
                None => {
                    self.introduce();
                    Ok(())
                }
            },
        }
    }

    async fn welcome_web(&self) -> Result<(), ArrivalError> {
        let Some(web) = &self.server.web else { return Err(ArrivalError::Ended) };
        let tls = self.server.tls.web.get();
        let gate = Gate::new(web.origins.clone(), web.secure, self.server.limits().max_payload);
        let within =
            web.options.handshake_timeout + tls.as_ref().map_or(Duration::ZERO, |tls| tls.options.timeout);
        self.cover(Layer::new(tls.as_ref().map(|tls| tls.config.clone()), Some(gate)))?;
        self.shake_hands(Instant::now() + within).await?;
        self.keep_secured(tls.as_deref(), true);
        self.check_pinned(tls.as_deref())?;
        self.introduce();
        Ok(())
    }

    async fn welcome_tls(&self, tls: &Tls) -> Result<(), ArrivalError> {
        let options = &tls.options;
        let first = match options.handshake_first {
            HandshakeFirst::Off => false,
            HandshakeFirst::Always => true,
            HandshakeFirst::Within(wait) => {
                let first = tokio::time::timeout(wait, self.first_byte()).await;
                matches!(first, Ok(Ok(TLS_HANDSHAKE)))
            }
        };
        if !first {
            self.say(|out| self.server.info(&self.client).write(out)).await?;
        }
        // Where there need be no handshake, as on nats-server, nobody waits for one.
        let rate = options.handshake_rate.filter(|_| !options.allow_non_tls);
        if rate.is_some_and(|limit| !self.server.handshake_pace.admits(limit, StdInstant::now())) {
            return Err(ArrivalError::Throttled);
        }
        let deadline = Instant::now() + options.timeout;
        match tokio::time::timeout_at(deadline, self.first_byte()).await {
            Ok(Ok(TLS_HANDSHAKE)) => {}
            Ok(Err(error)) => return Err(error),
            // Whoever is silent for so long does not start TLS, and has other deadlines to keep.
            Ok(Ok(_)) | Err(_) if options.allow_non_tls => return Ok(()),
            Ok(Ok(_)) => return Err(ArrivalError::NotTls),
            Err(_) => return Err(ArrivalError::Timeout),
        }
        about!(debug, self.client, "TLS handshake begins");
        self.cover(Layer::new(Some(tls.config.clone()), None))?;
        self.shake_hands(deadline).await?;
        self.keep_secured(Some(tls), first);
        self.check_pinned(Some(tls))?;
        if let Some(Secured { version, cipher, .. }) = self.client.secured() {
            about!(debug, self.client, version, cipher, "TLS handshake is over");
        }
        if first {
            self.introduce();
        }
        Ok(())
    }

    /// Whether the client's certificate is one of those that count, where it is not enough that an authority has signed it.
    fn check_pinned(&self, tls: Option<&Tls>) -> Result<(), ArrivalError> {
        let Some(pinned) = tls.map(|tls| &tls.options.pinned).filter(|pinned| !pinned.is_empty()) else {
            return Ok(());
        };
        let shown = self.client.secured().and_then(|secured| secured.peers.first());
        match shown.is_some_and(|shown| pinned.contains(&shown.key)) {
            true => Ok(()),
            false => Err(ArrivalError::NotPinned),
        }
    }

    /// INFO for the session's task to send, with all that comes behind it.
    fn introduce(&self) {
        let info = self.server.info(&self.client);
        self.client.outbox.write_later(|out| info.write(out));
    }

    /// Sends something before there is a layer.
    async fn say(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), ArrivalError> {
        let mut line = Vec::new();
        encode(&mut line);
        let mut rest = &line[..];
        while !rest.is_empty() {
            self.socket.writable().await?;
            match self.socket.try_write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What the client begins with, which stays to be read.
    async fn first_byte(&self) -> Result<u8, ArrivalError> {
        let mut byte = [0];
        match self.socket.tcp().peek(&mut byte).await? {
            0 => Err(ArrivalError::Left),
            _ => Ok(byte[0]),
        }
    }

    fn cover(&self, layer: Result<Layer, rustls::Error>) -> Result<(), ArrivalError> {
        self.socket.cover(layer.map_err(|error| ArrivalError::Failed(io::Error::other(error)))?);
        Ok(())
    }

    async fn shake_hands(&self, deadline: Instant) -> Result<(), ArrivalError> {
        let shaking = async {
            loop {
                // Signing takes a processor for a while: a storm of handshakes is to wait for itself and for nobody else.
                let turn = self.server.handshakes.acquire().await.map_err(io::Error::other)?;
                let progress = self.socket.try_shake_hands()?;
                drop(turn);
                match progress {
                    Progress::Done => return Ok(()),
                    Progress::Receive => self.socket.readable().await?,
                    Progress::Send => self.socket.writable().await?,
                }
            }
        };
        tokio::time::timeout_at(deadline, shaking).await.unwrap_or(Err(ArrivalError::Timeout))
    }

    fn keep_secured(&self, tls: Option<&Tls>, first: bool) {
        let is_mapped = tls.is_some_and(|tls| tls.options.clients == ClientCertificates::Mapped);
        let secured = self.socket.layer(|layer| {
            let tls = layer.tls()?;
            let chain = tls.peer_certificates().unwrap_or_default();
            Some(Secured {
                version: match tls.protocol_version()? {
                    rustls::ProtocolVersion::TLSv1_3 => "1.3",
                    _ => "1.2",
                },
                cipher: format!("{:?}", tls.negotiated_cipher_suite()?.suite()).replace("TLS13_", "TLS_"),
                first,
                owner: chain.first().and_then(Owner::of),
                peers: chain.iter().filter_map(Fingerprint::of).collect(),
                is_mapped,
            })
        });
        if let Some(secured) = secured.flatten() {
            self.client.set_secured(secured);
        }
    }
}
