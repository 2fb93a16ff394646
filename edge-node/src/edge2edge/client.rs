//! Typed requests to peers.

use std::sync::Arc;

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
    #[error("the peer's answer cannot be read: {0}")]
    Answer(String),
}

impl Error {
    /// Asking again later may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused(problem) => problem.status >= 500 || problem.status == StatusCode::TOO_MANY_REQUESTS.as_u16(),
            Self::Answer(_) => false,
        }
    }
}

/// Asks peers over whatever transport there is.
#[derive(Debug, Clone)]
pub struct Client(Arc<dyn Transport>);

impl Client {
    #[must_use]
    pub const fn new(transport: Arc<dyn Transport>) -> Self {
        Self(transport)
    }

    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0
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
        let response = self.0.request(to, request(Method::GET, path, Body::empty())?).await?;
        if response.status().is_success() { Ok(response.into_body()) } else { Err(refusal(response.status(), &read(response.into_body()).await?)) }
    }

    async fn ask<T: DeserializeOwned>(&self, to: NodeId, method: Method, path: &str, body: Body) -> Result<T, Error> {
        let response = self.0.request(to, request(method, path, body)?).await?;
        let status = response.status();
        let bytes = read(response.into_body()).await?;
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
    let problem = serde_json::from_slice(body).unwrap_or_else(|_| Problem::new(status, "unnamed", "the peer gave no problem document"));
    Error::Refused(problem)
}
