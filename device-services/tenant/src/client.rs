//! A tenant's side: requests over one kept connection, the stream of uplinks over another.

use std::{fmt, io, path::Path, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::Mutex,
};

use crate::{
    AFTER, ANSWER_BYTES_MAX, Accepted, CONFIG, CONFIG_BYTES_MAX, DEVICES, DOWNLINKS, Downlink, DownlinkEvents, Encrypted, HEALTH,
    Health, INGRESS, INGRESS_PROTOCOL, Problem, Queued, READINGS, REQUEST_MS_MAX, ReadingBatch, Refused, Registered,
    Registration, STATE, STATE_VALUE_BYTES_MAX, UPLINKS, Uplinks, check_state_key,
};

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the node, or it broke.
    #[error("the node cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer within [`REQUEST_MS_MAX`].
    #[error("the node did not answer in time")]
    TimedOut,
    /// The node refused.
    #[error("the node refused: {0}")]
    Problem(Problem),
    /// The answer is not what the protocol says.
    #[error("the node's answer makes no sense")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request would pass a limit of the protocol.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Error {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable(_) | Error::TimedOut => true,
            Error::Problem(problem) => problem.status >= 500 || matches!(problem.status, 408 | 425 | 429),
            Error::Answer(_) | Error::Refused(_) => false,
        }
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// A client of one node. Requests wait for each other; the stream of uplinks has a connection of its own. A connection that the node
/// closed meanwhile is opened again once per request; waiting longer is the caller's decision ([`crate::Backoff`]).
pub struct Client {
    connector: Connector,
    kept: Mutex<Option<Sender>>,
}

/// A byte stream to the node.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send>>;

/// Makes a new connection to the node at each call.
pub type Connector = Arc<dyn Fn() -> Connecting + Send + Sync>;

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the node behind `socket`. Connects with the first request.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        let socket = socket.as_ref().to_path_buf();
        Self::over(Arc::new(move || {
            let socket = socket.clone();
            Box::pin(async move { UnixStream::connect(socket).await.map(|stream| Box::new(stream) as Box<dyn Duplex>) })
        }))
    }

    /// A client over connections of another kind, for simulation.
    pub fn over(connector: Connector) -> Self {
        Client { connector, kept: Mutex::new(None) }
    }

    /// The configuration as the customer sealed it.
    ///
    /// # Errors
    /// See [`Error`]; the same holds for all requests.
    pub async fn config(&self) -> Result<Bytes, Error> {
        let answer = self.send(Method::GET, CONFIG, Bytes::new()).await?;
        read_body(answer, CONFIG_BYTES_MAX).await
    }

    /// Replaces the registered devices.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn register(&self, registration: &Registration) -> Result<Registered, Error> {
        registration.check()?;
        self.exchange(Method::PUT, DEVICES, registration).await
    }

    /// Opens the stream of uplinks behind cursor `after`, with and without a reading; without a cursor, all that have no reading yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn uplinks(&self, after: Option<u64>) -> Result<Uplinks, Error> {
        let path = after.map_or(UPLINKS.to_owned(), |cursor| format!("{UPLINKS}?{AFTER}={cursor}"));
        let opened = async {
            let mut sender = connect(&self.connector).await?;
            let request = request(&Method::GET, &path, &Bytes::new())?;
            sender.send_request(request).await.map_err(|error| Error::Unreachable(Box::new(error)))
        };
        let answer = within(opened).await?;
        Ok(Uplinks::new(check_status(answer).await?.into_body()))
    }

    /// Hands in readings; when this returns they are on the node's disk.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn publish(&self, batch: &ReadingBatch) -> Result<Accepted, Error> {
        batch.check()?;
        self.exchange(Method::POST, READINGS, batch).await
    }

    /// Queues a downlink.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn queue(&self, downlink: &Downlink) -> Result<Queued, Error> {
        downlink.check()?;
        self.exchange(Method::POST, DOWNLINKS, downlink).await
    }

    /// What became of downlinks, and what is to be encrypted, behind cursor `after`; waits up to [`crate::DOWNLINK_WAIT_MS_MAX`] for it. On a
    /// connection of its own, so that other requests do not wait behind it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn downlink_events(&self, after: Option<u64>) -> Result<DownlinkEvents, Error> {
        let path = after.map_or(DOWNLINKS.to_owned(), |cursor| format!("{DOWNLINKS}?{AFTER}={cursor}"));
        let answered = async {
            let mut sender = connect(&self.connector).await?;
            let request = request(&Method::GET, &path, &Bytes::new())?;
            sender.send_request(request).await.map_err(|error| Error::Unreachable(Box::new(error)))
        };
        let answer = check_status(within(answered).await?).await?;
        parse(&read_body(answer, ANSWER_BYTES_MAX).await?)
    }

    /// Hands in a payload encrypted for the counters that were asked for.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn encrypted(&self, encrypted: &Encrypted) -> Result<(), Error> {
        encrypted.check()?;
        let body = serde_json::to_vec(encrypted).map_err(|error| Error::Answer(Box::new(error)))?;
        let answer = self.send(Method::PUT, DOWNLINKS, Bytes::from(body)).await?;
        read_body(answer, ANSWER_BYTES_MAX).await.map(drop)
    }

    /// A small value, `None` if there is none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn state(&self, key: &str) -> Result<Option<Bytes>, Error> {
        check_state_key(key)?;
        match self.send(Method::GET, &format!("{STATE}/{key}"), Bytes::new()).await {
            Ok(answer) => read_body(answer, STATE_VALUE_BYTES_MAX).await.map(Some),
            Err(Error::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps a small value; when this returns it is on the node's disk.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_state(&self, key: &str, value: Bytes) -> Result<(), Error> {
        check_state_key(key)?;
        if value.len() > STATE_VALUE_BYTES_MAX {
            return Err(Error::Refused(Refused { field: "value".to_owned(), reason: "too large" }));
        }
        let answer = self.send(Method::PUT, &format!("{STATE}/{key}"), value).await?;
        read_body(answer, ANSWER_BYTES_MAX).await.map(drop)
    }

    /// Whether the node serves this tenant.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn health(&self) -> Result<Health, Error> {
        let answer = self.send(Method::GET, HEALTH, Bytes::new()).await?;
        parse(&read_body(answer, ANSWER_BYTES_MAX).await?)
    }

    /// Connects through the node to `address` (`host:port`), which its operator must have allowed.
    ///
    /// # Errors
    /// See [`Error`]; a [`Error::Problem`] of status 403 if it is not allowed, 502 if nobody answers there.
    pub async fn connect_to(&self, address: &str) -> Result<Box<dyn Duplex>, Error> {
        let request = Request::builder().method(Method::CONNECT).uri(address).header(HOST, address).body(Full::default());
        let request = request.map_err(|error| Error::Answer(Box::new(error)))?;
        within(self.tunnel(request, StatusCode::OK)).await
    }

    /// Waits for the next connection from outside that the node takes for this tenant.
    ///
    /// # Errors
    /// See [`Error`]; a [`Error::Problem`] of status 404 if the node takes none.
    pub async fn accept(&self) -> Result<Box<dyn Duplex>, Error> {
        let request = Request::builder().method(Method::GET).uri(INGRESS).header(HOST, "node");
        let request = request.header(CONNECTION, "upgrade").header(UPGRADE, INGRESS_PROTOCOL).body(Full::default());
        let request = request.map_err(|error| Error::Answer(Box::new(error)))?;
        self.tunnel(request, StatusCode::SWITCHING_PROTOCOLS).await
    }

    /// A connection that carries bytes after its one request.
    async fn tunnel(&self, request: Request<Full<Bytes>>, expected: StatusCode) -> Result<Box<dyn Duplex>, Error> {
        let mut sender = connect(&self.connector).await?;
        let answer = sender.send_request(request).await.map_err(|error| Error::Unreachable(Box::new(error)))?;
        if answer.status() != expected {
            check_status(answer).await?;
            return Err(Error::Answer("the node did not open a tunnel".into()));
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|error| Error::Unreachable(Box::new(error)))?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Answer(Box::new(error)))?;
        let answer = self.send(method, path, Bytes::from(body)).await?;
        parse(&read_body(answer, ANSWER_BYTES_MAX).await?)
    }

    /// Sends over the kept connection if it still lives, else over a new one. A request may be repeated: all are idempotent.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Error> {
        let answered = async {
            let mut kept = self.kept.lock().await;
            if let Some(mut sender) = kept.take() {
                let request = request(&method, path, &body)?;
                if sender.ready().await.is_ok()
                    && let Ok(answer) = sender.send_request(request).await
                {
                    *kept = Some(sender);
                    return Ok(answer);
                }
            }
            let mut sender = connect(&self.connector).await?;
            let request = request(&method, path, &body)?;
            let answer = sender.send_request(request).await.map_err(|error| Error::Unreachable(Box::new(error)))?;
            *kept = Some(sender);
            Ok(answer)
        };
        check_status(within(answered).await?).await
    }
}

async fn within<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(Duration::from_millis(REQUEST_MS_MAX), work).await.unwrap_or(Err(Error::TimedOut))
}

async fn connect(connector: &Connector) -> Result<Sender, Error> {
    let stream = connector().await.map_err(|error| Error::Unreachable(Box::new(error)))?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| Error::Unreachable(Box::new(error)))?;
    // Its end shows in the requests that use it.
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    Ok(sender)
}

fn request(method: &Method, path: &str, body: &Bytes) -> Result<Request<Full<Bytes>>, Error> {
    let request = Request::builder().method(method).uri(path).header(HOST, "node").header(CONTENT_TYPE, "application/json");
    request.body(Full::new(body.clone())).map_err(|error| Error::Answer(Box::new(error)))
}

async fn check_status(answer: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = read_body(answer, ANSWER_BYTES_MAX).await?;
    let mut problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    problem.status = status.as_u16();
    Err(Error::Problem(problem))
}

async fn read_body(answer: Response<Incoming>, bytes_max: usize) -> Result<Bytes, Error> {
    let body = Limited::new(answer.into_body(), bytes_max).collect();
    within(async { body.await.map_err(Error::Answer) }).await.map(|body| body.to_bytes())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Answer(Box::new(error)))
}
