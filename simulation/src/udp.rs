//! UDP between gateways and nodes: datagrams arrive at once or, if nobody listens, nowhere.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Datagrams that a socket holds; more are lost, as in a kernel.
const QUEUED_MAX: usize = 16_384;

/// Sees every datagram that a socket sends.
pub type Tap = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// The medium; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Udp(Arc<Mutex<Ports>>);

#[derive(Debug, Default)]
struct Ports {
    open: BTreeMap<SocketAddr, Arc<Port>>,
    /// Number of the last address given to who did not name one.
    given: u16,
}

#[derive(Debug, Default)]
struct Port {
    queue: Mutex<VecDeque<(Vec<u8>, SocketAddr)>>,
    arrived: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open socket; dropped, it closes.
pub struct Socket {
    medium: Udp,
    address: SocketAddr,
    port: Arc<Port>,
    tap: Option<Tap>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut ports = lock(&self.medium.0);
        if ports.open.get(&self.address).is_some_and(|open| Arc::ptr_eq(open, &self.port)) {
            ports.open.remove(&self.address);
        }
    }
}

impl Udp {
    /// Opens a socket; one that was open there hears nothing any more.
    #[must_use]
    pub fn open(&self, address: SocketAddr, tap: Option<Tap>) -> Socket {
        let port = Arc::<Port>::default();
        lock(&self.0).open.insert(address, Arc::clone(&port));
        Socket { medium: self.clone(), address, port, tap }
    }

    /// Whether somebody listens there.
    #[must_use]
    pub fn is_open(&self, address: SocketAddr) -> bool {
        lock(&self.0).open.contains_key(&address)
    }
}

impl Socket {
    fn send(&self, bytes: &[u8], to: SocketAddr) -> usize {
        if let Some(tap) = &self.tap {
            tap(bytes);
        }
        let port = lock(&self.medium.0).open.get(&to).cloned();
        if let Some(port) = port {
            let mut queue = lock(&port.queue);
            if queue.len() < QUEUED_MAX {
                queue.push_back((bytes.to_vec(), self.address));
                port.arrived.notify_one();
            }
        }
        bytes.len()
    }

    fn take(&self, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let (bytes, from) = lock(&self.port.queue).pop_front()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        Some((length, from))
    }

    async fn wait(&self) {
        loop {
            let arrived = self.port.arrived.notified();
            if !lock(&self.port.queue).is_empty() {
                return;
            }
            arrived.await;
        }
    }
}

impl lora_bridge::server::Socket for Socket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    async fn readable(&self) -> io::Result<()> {
        self.wait().await;
        Ok(())
    }

    fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.take(buffer).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn try_send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        Ok(self.send(bytes, to))
    }
}

impl motes::gateway::Socket for Socket {
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            if let Some(taken) = self.take(buffer) {
                return Ok(taken);
            }
            self.wait().await;
        }
    }

    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        Ok(self.send(bytes, to))
    }
}

impl motes::gateway::Sockets for Udp {
    type Socket = Socket;

    async fn bind(&self, _server: SocketAddr) -> io::Result<Socket> {
        let number = {
            let mut ports = lock(&self.0);
            ports.given += 1;
            ports.given
        };
        Ok(self.open(SocketAddr::from(([10, 0, 1, 1], number)), None))
    }
}
