//! Connections with the world beside the node: through the node, which carries the bytes as far as its operator allows, or direct where the
//! service runs as an ordinary process.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tenant::{Client, Duplex};
use tokio::{net::TcpListener, net::TcpStream, sync::mpsc};

/// The time a direct connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Between two attempts to listen, or to wait at the node for who comes.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);
/// How many wait at the node for connections from outside: so many can come at the same time.
const WAITERS: usize = 4;

/// A byte stream.
pub type Stream = Box<dyn Duplex>;

/// The way out.
#[derive(Debug, Clone)]
pub enum Outside {
    /// This machine's network.
    Direct,
    /// `CONNECT` on the node's socket.
    Node(Arc<Client>),
}

impl Outside {
    /// Through the node behind `socket`.
    #[must_use]
    pub fn through_node(socket: &Path) -> Self {
        Outside::Node(Arc::new(Client::new(socket)))
    }

    /// Connects to `host:port`.
    ///
    /// # Errors
    /// Nobody answers, or the node's operator does not allow it.
    pub async fn connect(&self, address: &str) -> io::Result<Stream> {
        match self {
            Outside::Direct => {
                let connected = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(address)).await;
                let stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                Ok(Box::new(stream))
            }
            Outside::Node(client) => client.connect_to(address).await.map_err(io::Error::other),
        }
    }

    /// Connections from outside, for ever: those that the node takes for this service, or those to `listen` of this machine. `None` if
    /// neither is there.
    #[must_use]
    pub fn incoming(&self, listen: Option<SocketAddr>) -> Option<mpsc::Receiver<Stream>> {
        let (sender, receiver) = mpsc::channel(1);
        match self {
            Outside::Direct => {
                tokio::spawn(listen_at(listen?, sender));
            }
            Outside::Node(client) => {
                for _ in 0..WAITERS {
                    tokio::spawn(wait_at(Arc::clone(client), sender.clone()));
                }
            }
        }
        Some(receiver)
    }
}

async fn listen_at(address: SocketAddr, sender: mpsc::Sender<Stream>) {
    while !sender.is_closed() {
        let Ok(listener) = TcpListener::bind(address).await else {
            tokio::time::sleep(LISTEN_AGAIN).await;
            continue;
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = sender.closed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    if sender.send(Box::new(stream)).await.is_err() {
                        return;
                    }
                }
                Err(_) => tokio::time::sleep(LISTEN_AGAIN).await,
            }
        }
    }
}

async fn wait_at(client: Arc<Client>, sender: mpsc::Sender<Stream>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = sender.closed() => return,
            accepted = client.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                if sender.send(stream).await.is_err() {
                    return;
                }
            }
            // The node is away, or opens nothing for this service.
            Err(_) => tokio::time::sleep(LISTEN_AGAIN).await,
        }
    }
}
