//! The typed client. Writes are signed statements and idempotent: after a lost answer, send the same again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{Method, Request, Response};
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, NodeId, OwnerId};
use futures_util::StreamExt as _;
use kit::problem::Problem;
use kit::wire::{Lost, Wire};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::resource::{
    AccountView, ArbitratorView, ContractView, EventView, EvidenceView, NodeView, OrderView, Page, ReputationView, Submission,
    TransferView, VerdictView,
};

/// One answer is at most this long.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// One event is at most this long.
pub const EVENT_BYTES_MAX: usize = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A stream silent for longer than this (the server sends a comment every 15 s) is dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(40);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arbitrator refused; the problem's type says why.
    #[error("the arbitrator refused: {0}")]
    Problem(Problem),
    #[error("the arbitrator was not reached")]
    Transport(#[from] reqwest::Error),
    #[error("the arbitrator was not reached")]
    Lost(#[from] Lost),
    #[error("the arbitrator's answer broke off")]
    Broken(#[from] axum::Error),
    #[error("the arbitrator did not answer within {0:?}")]
    Late(Duration),
    #[error("the arbitrator's answer is not what was asked for: {0}")]
    Answer(String),
    #[error("the stream of events ended; go on after event {after}")]
    StreamEnded { after: u64 },
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Transport(_) | Self::Lost(_) | Self::Broken(_) | Self::Late(_) | Self::StreamEnded { .. } => true,
            Self::Problem(problem) => problem.status >= 500 || problem.status == 408,
            Self::Answer(_) => false,
        }
    }

    /// The problem's name, if the arbitrator refused.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Problem(problem) => Some(problem.name()),
            Self::Transport(_) | Self::Lost(_) | Self::Broken(_) | Self::Late(_) | Self::Answer(_) | Self::StreamEnded { .. } => {
                None
            }
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// An arbitrator by its base URL. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    way: Way,
}

/// How requests get there.
#[derive(Debug, Clone)]
enum Way {
    Http { http: reqwest::Client, base: String },
    Wire(Arc<dyn Wire>),
}

impl Client {
    /// `base`: such as `http://127.0.0.1:7320`.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(base: &str) -> Result<Self> {
        // The first provider of the process stays; ours is the one that the workspace uses anyway.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).read_timeout(SILENCE_TIMEOUT);
        if base.starts_with("http:") {
            // The machine may have no certificates at all, and plain HTTP needs none.
            builder = builder.tls_certs_only(Vec::<reqwest::Certificate>::new());
        }
        let http = builder.build()?;
        Ok(Self { way: Way::Http { http, base: base.trim_end_matches('/').to_owned() } })
    }

    /// For an arbitrator at the other end of a wire, in the same process.
    #[must_use]
    pub fn over(wire: Arc<dyn Wire>) -> Self {
        Self { way: Way::Wire(wire) }
    }

    async fn call(&self, method: Method, path: &str, accept: &'static str, body: Option<Vec<u8>>) -> Result<Response<Body>> {
        let response = match &self.way {
            Way::Http { http, base } => {
                let request = http.request(method, format!("{base}{path}")).header(ACCEPT, accept);
                let request = match body {
                    Some(body) => request.header(CONTENT_TYPE, "application/json").body(body),
                    None => request,
                };
                let response = request.send().await?;
                let status = response.status();
                let mut answer = Response::new(Body::from_stream(response.bytes_stream()));
                *answer.status_mut() = status;
                answer
            }
            Way::Wire(wire) => {
                let request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
                let request = request.header(CONTENT_TYPE, "application/json").body(Body::from(body.unwrap_or_default()));
                wire.send(request.map_err(|error| Error::Answer(error.to_string()))?).await?
            }
        };
        accepted(response).await
    }

    async fn answer<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<T> {
        let answered = async {
            let response = self.call(method, path, "application/json", body).await?;
            serde_json::from_slice(&read(response).await?).map_err(|error| Error::Answer(error.to_string()))
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answered).await.map_err(|_| Error::Late(ANSWER_TIMEOUT))?
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.answer(Method::GET, path, None).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Answer(error.to_string()))?;
        self.answer(method, path, Some(body)).await
    }

    pub async fn describe_arbitrator(&self) -> Result<ArbitratorView> {
        self.get("/v1/arbitrator").await
    }

    /// The record of `node`, signed by it and its owner.
    pub async fn register_node(&self, node: NodeId, record: &Envelope) -> Result<NodeView> {
        self.send(Method::PUT, &format!("/v1/nodes/{node}"), record).await
    }

    pub async fn get_node(&self, node: NodeId) -> Result<NodeView> {
        self.get(&format!("/v1/nodes/{node}")).await
    }

    /// Puts a contract in force; known ones come back as they stand.
    pub async fn create_contract(&self, submission: &Submission) -> Result<ContractView> {
        self.send(Method::POST, "/v1/contracts", submission).await
    }

    pub async fn get_contract(&self, id: ContractId) -> Result<ContractView> {
        self.get(&format!("/v1/contracts/{id}")).await
    }

    /// Contracts in force in which `node` has a part; one page.
    pub async fn list_contracts_in_force(&self, node: NodeId, after: u64) -> Result<Page<ContractView>> {
        self.get(&format!("/v1/contracts?in_force=true&node={node}&after={after}&limit=200")).await
    }

    /// Evidence of any kind, cancellations and disputes; gives the contract as it stands then.
    pub async fn add_evidence(&self, id: ContractId, evidence: &Envelope) -> Result<ContractView> {
        self.send(Method::POST, &format!("/v1/contracts/{id}/evidence"), evidence).await
    }

    pub async fn list_evidence(&self, id: ContractId, after: u64) -> Result<Page<EvidenceView>> {
        self.get(&format!("/v1/contracts/{id}/evidence?after={after}&limit=200")).await
    }

    pub async fn get_verdict(&self, id: ContractId) -> Result<VerdictView> {
        self.get(&format!("/v1/contracts/{id}/verdict")).await
    }

    /// A deposit or withdrawal signed by an operator.
    pub async fn take_order(&self, order: &Envelope) -> Result<OrderView> {
        self.send(Method::POST, "/v1/orders", order).await
    }

    pub async fn list_accounts(&self, owner: OwnerId) -> Result<Vec<AccountView>> {
        self.get(&format!("/v1/accounts/{owner}")).await
    }

    /// Transfers that concern `owner`, or all; one page.
    pub async fn list_transfers(&self, owner: Option<OwnerId>, after: u64) -> Result<Page<TransferView>> {
        let owner = owner.map(|owner| format!("&owner={owner}")).unwrap_or_default();
        self.get(&format!("/v1/transfers?after={after}&limit=200{owner}")).await
    }

    pub async fn get_owner_reputation(&self, owner: OwnerId) -> Result<ReputationView> {
        self.get(&format!("/v1/reputation/{owner}")).await
    }

    /// Of the node's owner.
    pub async fn get_node_reputation(&self, node: NodeId) -> Result<ReputationView> {
        self.get(&format!("/v1/reputation/{node}")).await
    }

    /// Events after `after` (0: all; none: from now on).
    pub async fn follow_events(&self, after: Option<u64>) -> Result<Events> {
        let query = after.map(|after| format!("?after={after}")).unwrap_or_default();
        let response = self.call(Method::GET, &format!("/v1/events{query}"), "text/event-stream", None).await?;
        Ok(Events {
            body: response.into_body().into_data_stream(),
            buffer: Vec::new(),
            waiting: VecDeque::new(),
            after: after.unwrap_or(0),
        })
    }
}

/// A stream of events; after its end follow again with the number of the last one.
#[derive(Debug)]
pub struct Events {
    body: BodyDataStream,
    buffer: Vec<u8>,
    waiting: VecDeque<EventView>,
    after: u64,
}

impl Events {
    /// The next event.
    ///
    /// # Errors
    /// [`Error::StreamEnded`] with where to go on.
    pub async fn next(&mut self) -> Result<EventView> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.after = event.seq;
                return Ok(event);
            }
            let ended = Error::StreamEnded { after: self.after };
            let Some(Ok(chunk)) = self.body.next().await else { return Err(ended) };
            self.buffer.extend_from_slice(&chunk);
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Some(data) = line.strip_prefix(b"data: ") {
                    self.waiting.push_back(serde_json::from_slice(data).map_err(|error| Error::Answer(error.to_string()))?);
                }
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(Error::Answer("an event is too long".to_owned()));
            }
        }
    }
}

async fn accepted(response: Response<Body>) -> Result<Response<Body>> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = read(response).await?;
    let unnamed = || Problem::new(status, "unnamed", "there was no problem document");
    Err(Error::Problem(serde_json::from_slice(&body).unwrap_or_else(|_| unnamed())))
}

async fn read(response: Response<Body>) -> Result<Vec<u8>> {
    let (mut body, mut chunks) = (Vec::new(), response.into_body().into_data_stream());
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk?);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(Error::Answer("it is too long".to_owned()));
        }
    }
    Ok(body)
}
