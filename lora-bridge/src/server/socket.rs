//! The packet forwarders' socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::net::UdpSocket;

use super::Error;

/// The packet forwarders' socket: UDP, or a simulated network.
pub trait Socket: fmt::Debug + Send + Sync + 'static {
    /// Where gateways reach it.
    ///
    /// # Errors
    /// The socket is not bound.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Resolves when a datagram may be there.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Takes a datagram; longer ones than `buffer` are cut.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if none is there; others do not end the socket.
    fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Sends without waiting.
    ///
    /// # Errors
    /// It could not be sent now, and will not be sent later.
    fn try_send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize>;
}

impl Socket for UdpSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.readable()
    }

    fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.try_recv_from(buffer)
    }

    fn try_send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.try_send_to(bytes, to)
    }
}

/// Datagrams that wait in the kernel, as it counts them: a second of 20,000 packets. Forwarders repeat nothing, so what finds no room is lost,
/// and Linux gives 208 KiB by default: 20 ms. It grants what `net.core.rmem_max` allows.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Binds the packet forwarders' socket.
///
/// # Errors
/// [`Error::AddressInUse`] or [`Error::Bind`].
pub async fn bind(address: SocketAddr) -> Result<UdpSocket, Error> {
    let socket = UdpSocket::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::AddressInUse { address },
        _ => Error::Bind { address, source },
    })?;
    if let Err(error) = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES) {
        tracing::warn!(%error, "the receive buffer for gateways stays as it is");
    }
    Ok(socket)
}
