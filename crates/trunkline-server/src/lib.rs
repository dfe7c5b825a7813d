//! The embedded Trunkline server: speaks the NATS client protocol in front of the bus of this process.
//!
//! ```no_run
//! # async fn example() -> Result<(), trunkline_server::StartError> {
//! use std::sync::Arc;
//! use trunkline::backend::memory::Hub;
//! use trunkline_server::{Server, ServerOptions};
//!
//! let server = Server::start(ServerOptions::new(Arc::new(Hub::default()))).await?;
//! println!("nats://{}", server.nats_addr());
//! server.shutdown(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

pub mod admin;
mod arrival;
mod auth;
mod batches;
mod bridge;
mod client;
mod closed;
mod connection;
mod doorkeeper;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod http;
mod lame_duck;
mod memory;
mod options;
mod outbox;
mod pages;
mod process;
mod promises;
mod refusals;
mod reload;
mod room;
mod server;
mod session;
mod shared;
mod socket;
mod staging;
mod subscription;
mod tally;
mod threads;
mod tls;
mod trace;
mod turns;
mod view;
mod websocket;
mod wire;

pub use auth::{AuthError, AuthOptions, HashError, HashScheme, Reloaded, hash_password};
pub use http::{BesideOptions, BesideServer};
pub use memory::room_for_buffers;
pub use options::{AdminDefaults, Advertised, Limits, ServerOptions};
pub use reload::{AuthSource, ReloadError, ReloadOptions, SourceError};
pub use server::{Server, StartError};
pub use tls::{CertificateFiles, ClientCertificates, TlsError, TlsFileError, TlsOptions};
pub use trace::PROTOCOL_TRACE;
pub use websocket::{OriginError, WebSocketOptions};
