//! Typed requests to peers.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, StatusCode, header};
use contracts::ids::NodeId;
use kit::problem::Problem;
use peering::{Transport, transport};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// An answer is at most this long, unless it is content.
pub const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Why a peer did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the peer cannot be reached")]
    Unreachable(#[from] transport::Error),
    #[error("the peer refused: {0}")]
    Refused(Problem),
    #[error("the peer did not answer within {0:?}")]
    Timeout(Duration),
    #[error("the peer's answer cannot be read: {0}")]
    Answer(String),
}

impl Error {
    /// Asking again later may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Timeout(_) => true,
            Self::Refused(problem) => problem.status >= 500 || problem.status == StatusCode::TOO_MANY_REQUESTS.as_u16(),
            Self::Answer(_) => false,
        }
    }
}

/// Asks peers over whatever transport there is.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    /// Longest wait for a whole answer. A peer that died is noticed by QUIC only after its idle timeout.
    answer_max: Duration,
}

/// How long a client waits if nothing else was said.
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Client {
    #[must_use]
    pub const fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, answer_max: ANSWER_MAX }
    }

    /// The same, for those who cannot wait longer than this.
    #[must_use]
    pub fn within(&self, answer_max: Duration) -> Self {
        Self { transport: Arc::clone(&self.transport), answer_max }
    }

    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// # Errors
    /// The peer is away or refused.
    pub async fn get<T: DeserializeOwned>(&self, to: NodeId, path: &str) -> Result<T, Error> {
        self.ask(to, Method::GET, path, Body::empty()).await
    }

    /// # Errors
    /// The peer is away or refused.
    pub async fn post<T: DeserializeOwned>(&self, to: NodeId, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.ask(to, Method::POST, path, json(body)?).await
    }

    /// # Errors
    /// The peer is away or refused.
    pub async fn put<T: DeserializeOwned>(&self, to: NodeId, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.ask(to, Method::PUT, path, json(body)?).await
    }

    /// The raw answer, for content that is streamed.
    ///
    /// # Errors
    /// The peer is away or refused.
    pub async fn stream(&self, to: NodeId, path: &str) -> Result<Body, Error> {
        let response = self.transport.request(to, request(Method::GET, path, Body::empty())?).await?;
        if response.status().is_success() {
            Ok(response.into_body())
        } else {
            Err(refusal(response.status(), &read(response.into_body()).await?))
        }
    }

    async fn ask<T: DeserializeOwned>(&self, to: NodeId, method: Method, path: &str, body: Body) -> Result<T, Error> {
        let answered = async {
            let response = self.transport.request(to, request(method, path, body)?).await?;
            let status = response.status();
            Ok::<_, Error>((status, read(response.into_body()).await?))
        };
        let (status, bytes) =
            tokio::time::timeout(self.answer_max, answered).await.map_err(|_| Error::Timeout(self.answer_max))??;
        if !status.is_success() {
            return Err(refusal(status, &bytes));
        }
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|e| Error::Answer(e.to_string()))
    }
}

fn json(body: &impl Serialize) -> Result<Body, Error> {
    serde_json::to_vec(body).map(Body::from).map_err(|e| Error::Answer(e.to_string()))
}

fn request(method: Method, path: &str, body: Body) -> Result<Request<Body>, Error> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| Error::Answer(e.to_string()))
}

async fn read(body: Body) -> Result<Bytes, Error> {
    axum::body::to_bytes(body, ANSWER_BYTES_MAX).await.map_err(|e| Error::Answer(e.to_string()))
}

fn refusal(status: StatusCode, body: &[u8]) -> Error {
    let problem =
        serde_json::from_slice(body).unwrap_or_else(|_| Problem::new(status, "unnamed", "the peer gave no problem document"));
    Error::Refused(problem)
}
