//! Connections of a tenant with the outside: it has no network, so the node carries the bytes, to the addresses that its operator allows.
//!
//! - outward: `CONNECT host:port` on the tenant socket
//! - inward: the node listens at an address, the tenant waits at `GET /v1/ingress` and gets one connection with each answer
//!
//! A tunnel takes one of the tenant's connections for as long as it lives, so a tenant costs a bounded number of sockets. Nothing here is
//! on the way of a takeover: readings go through the node itself.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use kit::problem::Problem;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use super::{Tenant, http};

/// The time a connection outward may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Between two attempts to listen at an address that is taken.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// After a connection that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Connections from outside that wait for the tenant; more wait in the kernel's queue.
const ARRIVALS_MAX: usize = 8;
/// A connection from outside that the tenant does not take in time is closed.
const ARRIVAL_WAIT_MAX: Duration = Duration::from_secs(10);

/// What the operator allows.
#[derive(Debug, Clone, Default)]
pub struct Outside {
    /// `host:port` each; `*` allows every address.
    pub egress: BTreeSet<String>,
    /// Where this node takes connections for the tenant.
    pub listen: Option<SocketAddr>,
}

impl Outside {
    fn allows(&self, address: &str) -> bool {
        self.egress.contains("*") || self.egress.contains(&address.to_ascii_lowercase())
    }
}

/// Connections from outside on their way to the tenant.
#[derive(Debug)]
pub(super) struct Arrivals {
    sender: mpsc::Sender<(TcpStream, tokio::time::Instant)>,
    waiting: tokio::sync::Mutex<mpsc::Receiver<(TcpStream, tokio::time::Instant)>>,
}

impl Default for Arrivals {
    fn default() -> Self {
        let (sender, waiting) = mpsc::channel(ARRIVALS_MAX);
        Self { sender, waiting: tokio::sync::Mutex::new(waiting) }
    }
}

impl Arrivals {
    pub(super) fn sender(&self) -> mpsc::Sender<(TcpStream, tokio::time::Instant)> {
        self.sender.clone()
    }

    /// The next one that has not waited too long.
    async fn next(&self) -> Option<TcpStream> {
        let mut waiting = self.waiting.lock().await;
        loop {
            let (stream, since) = waiting.recv().await?;
            if since.elapsed() < ARRIVAL_WAIT_MAX {
                return Some(stream);
            }
        }
    }
}

/// Takes connections from outside until it is aborted.
pub(super) async fn listen(address: SocketAddr, arrivals: mpsc::Sender<(TcpStream, tokio::time::Instant)>) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => tracing::warn!(%address, %error, "connections for the tenant cannot be taken here"),
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    };
    loop {
        // Room first: what finds none waits in the kernel.
        let Ok(place) = arrivals.reserve().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => place.send((stream, tokio::time::Instant::now())),
            Err(error) => {
                tracing::debug!(%error, "a connection for the tenant could not be taken");
                // Most likely there are no descriptors left: that does not pass at once.
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// What a connection becomes after its last answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Tunnel(Arc<Mutex<Option<(OnUpgrade, TcpStream)>>>);

impl Tunnel {
    fn dig(&self, upgrade: OnUpgrade, outside: TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, outside));
    }

    /// Carries bytes until both sides are done; nothing to do for a connection that ended as HTTP.
    pub(super) async fn carry(self) {
        let dug = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((upgrade, mut outside)) = dug else { return };
        match upgrade.await {
            Ok(upgraded) => {
                let carried = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut outside).await;
                tracing::debug!(?carried, "a tunnel ended");
            }
            Err(error) => tracing::debug!(%error, "a tunnel was not opened"),
        }
    }
}

/// The service of a tenant's connections: tunnels are dug here, everything else is routed.
#[derive(Clone)]
pub(super) struct Gate {
    tenant: Arc<Tenant>,
    router: Router,
    tunnel: Tunnel,
}

impl Gate {
    pub(super) fn new(tenant: Arc<Tenant>) -> Self {
        Self { router: http::router(Arc::clone(&tenant)), tenant, tunnel: Tunnel::default() }
    }

    /// The gate of a new connection, and what that may become.
    pub(super) fn for_connection(&self) -> (Self, Tunnel) {
        let tunnel = Tunnel::default();
        (Self { tunnel: tunnel.clone(), ..self.clone() }, tunnel)
    }

    async fn answer(self, request: Request<Incoming>) -> Response {
        let dug = if request.method() == Method::CONNECT {
            self.dig_outward(request).await
        } else if request.uri().path() == tenant::INGRESS {
            self.dig_inward(request).await
        } else {
            match self.router.oneshot(request).await {
                Ok(response) => return response,
                Err(never) => match never {},
            }
        };
        dug.unwrap_or_else(|problem: Problem| problem.into_response())
    }

    async fn dig_outward(&self, mut request: Request<Incoming>) -> Result<Response, Problem> {
        let address = request.uri().authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        if address.len() > tenant::ADDRESS_BYTES_MAX
            || address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err())
        {
            return Err(Problem::invalid("address", "not host:port"));
        }
        if !self.tenant.outside.allows(&address) {
            return Err(Problem::forbidden(format_args!("the operator of this node does not allow connections to {address}")));
        }
        let connected = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(&address)).await;
        let outside = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(format_args!("{address}: {error}"))),
            Err(_) => return Err(unreachable(format_args!("{address}: no answer"))),
        };
        self.tunnel.dig(hyper::upgrade::on(&mut request), outside);
        Ok(StatusCode::OK.into_response())
    }

    async fn dig_inward(&self, mut request: Request<Incoming>) -> Result<Response, Problem> {
        if self.tenant.outside.listen.is_none() {
            return Err(Problem::not_found("the operator of this node takes no connections for this tenant"));
        }
        let upgrade = request.headers().get(UPGRADE).is_some_and(|value| value.as_bytes() == tenant::INGRESS_PROTOCOL.as_bytes());
        if request.method() != Method::GET || !upgrade {
            return Err(Problem::invalid("upgrade", "the answer to this request is a stream"));
        }
        let Some(outside) = self.tenant.arrivals.next().await else {
            return Err(Problem::unavailable("the node is going down"));
        };
        self.tunnel.dig(hyper::upgrade::on(&mut request), outside);
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        response.headers_mut().insert(CONNECTION, axum::http::HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, axum::http::HeaderValue::from_static(tenant::INGRESS_PROTOCOL));
        Ok(response)
    }
}

fn unreachable(detail: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, "unreachable", "Nobody answers at the address").detail(detail)
}

impl tower::Service<Request<Incoming>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let gate = self.clone();
        Box::pin(async move { Ok(gate.answer(request).await) })
    }
}
