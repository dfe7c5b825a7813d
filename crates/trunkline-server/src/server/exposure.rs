//! Which addresses may be listened on: any of the loopback, and others where clients are asked who they are and nobody can
//! read along.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use super::StartError;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// The key of the address where probes and metrics are served apart.
pub(crate) const METRICS_LISTEN: &str = "server.metrics_listen";

/// What decides whether other machines may reach the server.
#[derive(Clone, Copy)]
pub(crate) struct Exposure {
    /// Clients are asked who they are.
    pub(crate) auth: bool,
    /// What is sent there is encrypted, or the operator trusts the network.
    pub(crate) safe: bool,
}

impl Exposure {
    /// Probes and metrics apart are for machines that have no credentials.
    pub(crate) const PROBES: Self = Self { auth: true, safe: true };
}

/// Binds an address of the configuration, and says which it has become.
pub(crate) fn listen(
    wanted: SocketAddr,
    setting: &'static str,
    rule: Exposure,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let listener = bind(wanted, setting, rule)?;
    let address = local_address(&listener, wanted, setting)?;
    Ok((listener, address))
}

fn bind(address: SocketAddr, setting: &'static str, rule: Exposure) -> Result<TcpListener, StartError> {
    if !address.ip().is_loopback() {
        if !rule.auth {
            return Err(StartError::Exposed { address, setting });
        }
        if !rule.safe {
            return Err(StartError::Plaintext { address, setting });
        }
    }
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| StartError::Bind { address, setting, source })
}

fn local_address(
    listener: &TcpListener,
    address: SocketAddr,
    setting: &'static str,
) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Bind { address, setting, source })
}
