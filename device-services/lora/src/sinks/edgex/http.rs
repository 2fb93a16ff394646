//! One request over a connection of its own.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request,
    body::Bytes,
    client::conn::http1::handshake,
    header::{CONNECTION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::outside::Outside;

/// For a request and its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    #[error("the connection broke")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer in time")]
    TimedOut,
}

/// Asks `address`; gives status and document (`null` if the answer is no JSON).
///
/// # Errors
/// [`Error`].
pub async fn ask(
    outside: &Outside,
    address: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value), Error> {
    let asked = async {
        let stream = outside.connect(address).await.map_err(Error::Connect)?;
        let (mut sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| Error::Connection(Box::new(error)))?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        let body = body.map(|document| Bytes::from(document.to_string())).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header(HOST, address).header(CONNECTION, "close");
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body));
        let request = request.map_err(|error| Error::Connection(Box::new(error)))?;
        let answer = sender.send_request(request).await.map_err(|error| Error::Connection(Box::new(error)))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(Error::Connection)?;
        driver.abort();
        Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null)))
    };
    tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or(Err(Error::TimedOut))
}
