//! HTTP/1.1 on one QUIC stream: one request, one response, bodies streamed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use axum::response::IntoResponse;
use contracts::ids::NodeId;
use contracts::time::Millis;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use iroh::endpoint::{Connection, RecvStream, SendStream};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::limits::{HTTP_BUFFER_BYTES_MAX, REQUEST_HEAD_MS_MAX};
use crate::transport::{Error, PeerIdentity};

/// What stands before the router for one peer.
pub(super) trait Gate: Send + Sync {
    /// Whether the peer may make one more request now.
    fn admit_request(&self) -> bool;
    fn router(&self) -> Option<Router>;
    fn request_body_bytes_max(&self) -> usize;
}

/// Serves the one request of an incoming stream.
pub(super) async fn serve(gate: Arc<dyn Gate>, peer: NodeId, send: SendStream, recv: RecvStream) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let gate = Arc::clone(&gate);
        async move { Ok::<_, Infallible>(answer(&*gate, peer, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD_MS_MAX.to_duration())
        .keep_alive(false)
        .max_buf_size(HTTP_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(tokio::io::join(recv, send)), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(peer = %peer.short(), %error, "a request on a peer's stream ended early");
    }
}

async fn answer(gate: &dyn Gate, peer: NodeId, request: Request<Incoming>) -> Response<Body> {
    if !gate.admit_request() {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    }
    let Some(router) = gate.router() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let mut request = request.map(|body| Body::new(Limited::new(body, gate.request_body_bytes_max())));
    request.extensions_mut().insert(PeerIdentity(peer));
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Sends one request on a new stream of `connection`; `stall` is how long the peer may make no progress before the head of its answer.
pub(super) async fn request(
    connection: &Connection,
    peer: NodeId,
    request: Request<Body>,
    stall: Millis,
    in_use: impl Send + Sync + 'static,
) -> Result<Response<Body>, Error> {
    let lost = |source: Box<dyn std::error::Error + Send + Sync>| Error::Lost { peer, source };
    let opened = tokio::time::timeout(stall.to_duration(), connection.open_bi()).await;
    let (send, recv) = opened.map_err(|_| Error::Stalled { peer, timeout: stall })?.map_err(|error| lost(error.into()))?;
    let (mut sender, driver) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HTTP_BUFFER_BYTES_MAX)
        .handshake::<_, Body>(TokioIo::new(tokio::io::join(recv, send)))
        .await
        .map_err(|error| lost(error.into()))?;
    tokio::spawn(driver);

    let progress = Arc::new(Progress::default());
    let request = prepare(request, peer, Arc::clone(&progress));
    let response = tokio::select! {
        biased;
        response = sender.send_request(request) => response.map_err(|error| lost(error.into()))?,
        () = progress.stalled(stall.to_duration()) => return Err(Error::Stalled { peer, timeout: stall }),
    };
    // The connection counts as used until the body of the answer was read or dropped.
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &in_use;
            frame
        }))
    }))
}

/// HTTP/1.1 wants the path alone in the request line, and a Host.
fn prepare(request: Request<Body>, peer: NodeId, progress: Arc<Progress>) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    if let Some(path) = parts.uri.path_and_query() {
        parts.uri = Uri::from(path.clone());
    }
    if !parts.headers.contains_key(header::HOST)
        && let Ok(host) = HeaderValue::from_str(&peer.to_string())
    {
        parts.headers.insert(header::HOST, host);
    }
    let body = Body::new(body.map_frame(move |frame| {
        progress.touch();
        frame
    }));
    Request::from_parts(parts, body)
}

/// When the request's body last moved: a long upload is no stall.
struct Progress(std::sync::Mutex<Instant>);

impl Default for Progress {
    fn default() -> Self {
        Self(std::sync::Mutex::new(Instant::now()))
    }
}

impl Progress {
    fn touch(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Ends when nothing moved for `limit`.
    async fn stalled(&self, limit: Duration) {
        loop {
            let deadline = self.last() + limit;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}
