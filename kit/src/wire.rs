//! The way of a client's requests to a server that is in the same process: what a simulation puts in the place of HTTP.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use axum::body::Body;
use axum::http::{Request, Response};

/// A request on its way, and its answer.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<Response<Body>, Lost>> + Send + 'a>>;

/// Something was lost on the way, or nobody is there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Lost(pub String);

/// Brings requests to one server. The body of an answer may go on for as long as the server likes (a stream of events); it ends with an
/// error if the way breaks.
pub trait Wire: fmt::Debug + Send + Sync + 'static {
    fn send(&self, request: Request<Body>) -> Sending<'_>;
}
