//! The typed client. Writes are signed statements and idempotent: after a lost answer, send the same again.

use std::collections::VecDeque;
use std::time::Duration;

use contracts::envelope::Envelope;
use contracts::ids::{ContractId, NodeId, OwnerId};
use kit::problem::Problem;
use reqwest::{Method, RequestBuilder, Response};
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
            Self::Transport(_) | Self::StreamEnded { .. } => true,
            Self::Problem(problem) => problem.status >= 500 || problem.status == 408,
            Self::Answer(_) => false,
        }
    }

    /// The problem's name, if the arbitrator refused.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Problem(problem) => Some(problem.name()),
            Self::Transport(_) | Self::Answer(_) | Self::StreamEnded { .. } => None,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// An arbitrator by its base URL. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
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
        Ok(Self { http, base: base.trim_end_matches('/').to_owned() })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        answer(self.request(Method::GET, path).timeout(ANSWER_TIMEOUT)).await
    }

    pub async fn describe_arbitrator(&self) -> Result<ArbitratorView> {
        self.get("/v1/arbitrator").await
    }

    /// The record of `node`, signed by it and its owner.
    pub async fn register_node(&self, node: NodeId, record: &Envelope) -> Result<NodeView> {
        answer(self.request(Method::PUT, &format!("/v1/nodes/{node}")).timeout(ANSWER_TIMEOUT).json(record)).await
    }

    pub async fn get_node(&self, node: NodeId) -> Result<NodeView> {
        self.get(&format!("/v1/nodes/{node}")).await
    }

    /// Puts a contract in force; known ones come back as they stand.
    pub async fn create_contract(&self, submission: &Submission) -> Result<ContractView> {
        answer(self.request(Method::POST, "/v1/contracts").timeout(ANSWER_TIMEOUT).json(submission)).await
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
        answer(self.request(Method::POST, &format!("/v1/contracts/{id}/evidence")).timeout(ANSWER_TIMEOUT).json(evidence)).await
    }

    pub async fn list_evidence(&self, id: ContractId, after: u64) -> Result<Page<EvidenceView>> {
        self.get(&format!("/v1/contracts/{id}/evidence?after={after}&limit=200")).await
    }

    pub async fn get_verdict(&self, id: ContractId) -> Result<VerdictView> {
        self.get(&format!("/v1/contracts/{id}/verdict")).await
    }

    /// A deposit or withdrawal signed by an operator.
    pub async fn take_order(&self, order: &Envelope) -> Result<OrderView> {
        answer(self.request(Method::POST, "/v1/orders").timeout(ANSWER_TIMEOUT).json(order)).await
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
        let response =
            self.request(Method::GET, &format!("/v1/events{query}")).header("accept", "text/event-stream").send().await?;
        let response = accepted(response).await?;
        Ok(Events { response, buffer: Vec::new(), waiting: VecDeque::new(), after: after.unwrap_or(0) })
    }
}

/// A stream of events; after its end follow again with the number of the last one.
#[derive(Debug)]
pub struct Events {
    response: Response,
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
            let Ok(Some(chunk)) = self.response.chunk().await else { return Err(ended) };
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

async fn accepted(response: Response) -> Result<Response> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = axum::http::StatusCode::from_u16(response.status().as_u16()).unwrap_or(axum::http::StatusCode::BAD_GATEWAY);
    let body = body(response).await?;
    let unnamed = || Problem::new(status, "unnamed", "there was no problem document");
    Err(Error::Problem(serde_json::from_slice(&body).unwrap_or_else(|_| unnamed())))
}

async fn body(mut response: Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(Error::Answer("it is too long".to_owned()));
        }
    }
    Ok(body)
}

async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T> {
    let response = accepted(request.send().await?).await?;
    serde_json::from_slice(&body(response).await?).map_err(|error| Error::Answer(error.to_string()))
}
