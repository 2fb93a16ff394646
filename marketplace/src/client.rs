//! The typed client. Writes are signed statements and idempotent: after a lost answer, send the same again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{Request, Response};
use contracts::envelope::Envelope;
use contracts::ids::{NodeId, StatementId};
use futures_util::StreamExt as _;
use kit::problem::Problem;
use kit::wire::{Lost, Wire};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde::de::DeserializeOwned;

use crate::resource::{Event, Listing, ListingKind, ListingState, Marketplace, Match, MatchState, Node, Page, Statistics};

/// One answer is at most this long.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// One event is at most this long.
pub const EVENT_BYTES_MAX: usize = 64 << 10;
/// Pages read at most by the methods that read a whole list.
pub const PAGES_MAX: usize = 1_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A stream silent for longer than this (the server sends a comment every 15 s) is dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(40);
/// Waiting begins with this pause after a failure, doubles it up to the second, and looks by itself every so often.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The marketplace refused; its type says why and does not change by asking again (but `too-many-requests`, `unavailable`, `internal`).
    #[error("the marketplace refused")]
    Problem(#[from] Problem),
    #[error("the marketplace was not reached")]
    Transport(#[from] reqwest::Error),
    #[error("the marketplace was not reached")]
    Lost(#[from] Lost),
    #[error("the marketplace's answer broke off")]
    Broken(#[from] axum::Error),
    #[error("the marketplace's address is not usable: {0}")]
    Address(String),
    #[error("the marketplace's answer is not what was asked for: {0}")]
    Answer(String),
    #[error("no match within {0:?}")]
    TimedOut(Duration),
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Transport(_) | Self::Lost(_) | Self::Broken(_) | Self::TimedOut(_) => true,
            Self::Problem(problem) => {
                ["too-many-requests", "unavailable", "internal", "request-timeout"].contains(&problem.name())
            }
            Self::Address(_) | Self::Answer(_) => false,
        }
    }
}

/// A marketplace by its base URL. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    base: reqwest::Url,
    way: Way,
}

/// How requests get there.
#[derive(Debug, Clone)]
enum Way {
    Http(reqwest::Client),
    Wire(Arc<dyn Wire>),
}

impl Client {
    /// For a base URL such as `http://127.0.0.1:7310`. Proxies of the environment are not used.
    ///
    /// # Errors
    /// [`Error::Address`] if it is no http(s) URL, [`Error::Transport`] if TLS cannot be set up.
    pub fn new(base: &str) -> Result<Self, Error> {
        let base: reqwest::Url = base.parse().map_err(|e| Error::Address(format!("{e}")))?;
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).read_timeout(SILENCE_TIMEOUT);
        // TLS needs a provider even if it is not used; whoever installed one before wins.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = match base.scheme() {
            // The machine may have no certificates at all, and plain HTTP needs none.
            "http" => builder.tls_certs_only(Vec::<reqwest::Certificate>::new()),
            "https" => builder,
            other => return Err(Error::Address(format!("scheme {other}, wanted http or https"))),
        };
        Ok(Self { base, way: Way::Http(builder.build()?) })
    }

    /// For a marketplace at the other end of a wire, in the same process.
    ///
    /// # Errors
    /// Never: the base URL is a constant.
    pub fn over(wire: Arc<dyn Wire>) -> Result<Self, Error> {
        let base = "http://marketplace.invalid".parse().map_err(|e| Error::Address(format!("{e}")))?;
        Ok(Self { base, way: Way::Wire(wire) })
    }

    /// Who the marketplace is: its key signs the matches.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn marketplace(&self) -> Result<Marketplace, Error> {
        self.get("/v1/marketplace", &[]).await
    }

    /// Registers a node by its record (signed by node and owner), or replaces the record.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn register(&self, node: NodeId, record: &Envelope) -> Result<Node, Error> {
        self.send(Method::PUT, &format!("/v1/nodes/{node}"), record).await
    }

    /// Lists an offer.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn offer(&self, offer: &Envelope) -> Result<Listing, Error> {
        self.send(Method::POST, "/v1/offers", offer).await
    }

    /// Lists a demand.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn demand(&self, demand: &Envelope) -> Result<Listing, Error> {
        self.send(Method::POST, "/v1/demands", demand).await
    }

    /// Takes a listing back.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn withdraw(&self, withdrawal: &Envelope) -> Result<Listing, Error> {
        self.send(Method::POST, "/v1/withdrawals", withdrawal).await
    }

    /// Confirms a match by the contract that both parties signed.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn confirm(&self, id: StatementId, contract: &Envelope) -> Result<Match, Error> {
        self.send(Method::PUT, &format!("/v1/matches/{id}/contract"), contract).await
    }

    /// # Errors
    /// [`Error`]; an unknown one is the problem `not-found`.
    pub async fn node(&self, id: NodeId) -> Result<Node, Error> {
        self.get(&format!("/v1/nodes/{id}"), &[]).await
    }

    /// # Errors
    /// [`Error`]; an unknown one is the problem `not-found`.
    pub async fn listing(&self, kind: ListingKind, id: StatementId) -> Result<Listing, Error> {
        self.get(&format!("/v1/{kind}s/{id}"), &[]).await
    }

    /// # Errors
    /// [`Error`]; an unknown one is the problem `not-found`.
    pub async fn get_match(&self, id: StatementId) -> Result<Match, Error> {
        self.get(&format!("/v1/matches/{id}"), &[]).await
    }

    /// All registered nodes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.list("/v1/nodes", &[]).await
    }

    /// All listings of a kind, of one node or of all, in one state or in any.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn listings(
        &self,
        kind: ListingKind,
        node: Option<NodeId>,
        state: Option<ListingState>,
    ) -> Result<Vec<Listing>, Error> {
        let filters = [("node", node.map(|n| n.to_string())), ("state", state.map(|s| s.to_string()))];
        self.list(&format!("/v1/{kind}s"), &filters).await
    }

    /// All matches of a node, on either side, in one state or in any.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn matches_of(&self, node: NodeId, state: Option<MatchState>) -> Result<Vec<Match>, Error> {
        self.list("/v1/matches", &[("node", Some(node.to_string())), ("state", state.map(|s| s.to_string()))]).await
    }

    /// All matches of an offer or a demand.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn matches_of_listing(&self, listing: StatementId, state: Option<MatchState>) -> Result<Vec<Match>, Error> {
        self.list("/v1/matches", &[("listing", Some(listing.to_string())), ("state", state.map(|s| s.to_string()))]).await
    }

    /// The first page of statistics, or the one at a cursor.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn statistics(&self, cursor: Option<&str>) -> Result<Statistics, Error> {
        self.get("/v1/statistics", &[("cursor", cursor.map(str::to_owned))]).await
    }

    /// What happens from now on (`after` absent) or after an event, of a node or of all.
    ///
    /// # Errors
    /// [`Error`]; the problem `events-gone` if events after that one are not kept.
    pub async fn events(&self, node: Option<NodeId>, after: Option<u64>) -> Result<EventStream, Error> {
        let query = [("node", node.map(|n| n.to_string())), ("after", after.map(|a| a.to_string()))];
        let url = self.url("/v1/events", &query)?;
        let call = self.call(Method::GET, url, "text/event-stream", None);
        let response = tokio::time::timeout(ANSWER_TIMEOUT, call).await.map_err(|_| Error::TimedOut(ANSWER_TIMEOUT))??;
        if response.status().is_success() {
            let body = response.into_body().into_data_stream();
            return Ok(EventStream { body, buffer: Vec::new(), waiting: VecDeque::new() });
        }
        Err(refusal(response).await)
    }

    /// Waits until a listing of `node` has a held or confirmed match. Events wake it; after a failure it tries again with growing pauses.
    ///
    /// # Errors
    /// [`Error::TimedOut`] after `within`, or what will not change by trying again.
    pub async fn wait_for_match(&self, node: NodeId, listing: StatementId, within: Duration) -> Result<Match, Error> {
        let search = async {
            let mut pause = BACKOFF_MIN;
            loop {
                match self.next_match(node, listing).await {
                    Ok(found) => return Ok(found),
                    Err(error) if !error.is_transient() => return Err(error),
                    Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "waiting for a match goes on"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF_MAX);
            }
        };
        tokio::time::timeout(within, search).await.map_err(|_| Error::TimedOut(within))?
    }

    /// Listens first, then looks, then looks again at every event.
    async fn next_match(&self, node: NodeId, listing: StatementId) -> Result<Match, Error> {
        let mut events = self.events(Some(node), None).await?;
        loop {
            let matches = self.matches_of_listing(listing, None).await?;
            if let Some(active) = matches.into_iter().rev().find(|m| m.state.is_active()) {
                return Ok(active);
            }
            if events.next().await?.is_none() {
                return Err(Problem::unavailable("the event stream ended").into());
            }
        }
    }

    /// The path below the base URL, with those parameters that are given.
    fn url(&self, path: &str, query: &[(&str, Option<String>)]) -> Result<reqwest::Url, Error> {
        let mut url = self.base.join(path).map_err(|e| Error::Address(e.to_string()))?;
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        Ok(url)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, Option<String>)]) -> Result<T, Error> {
        self.answer(Method::GET, self.url(path, query)?, None).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, statement: &Envelope) -> Result<T, Error> {
        self.answer(method, self.url(path, &[])?, Some(statement)).await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        url: reqwest::Url,
        statement: Option<&Envelope>,
    ) -> Result<T, Error> {
        let answered = async {
            let response = self.call(method, url, "application/json", statement).await?;
            if !response.status().is_success() {
                return Err(refusal(response).await);
            }
            let body = read_body(response).await?;
            serde_json::from_slice(&body).map_err(|e| Error::Answer(e.to_string()))
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answered).await.map_err(|_| Error::TimedOut(ANSWER_TIMEOUT))?
    }

    async fn call(
        &self,
        method: Method,
        url: reqwest::Url,
        accept: &'static str,
        statement: Option<&Envelope>,
    ) -> Result<Response<Body>, Error> {
        match &self.way {
            Way::Http(http) => {
                let request = http.request(method, url).header(ACCEPT, accept);
                let request = if let Some(statement) = statement { request.json(statement) } else { request };
                let response = request.send().await?;
                let status = response.status();
                let mut answer = Response::new(Body::from_stream(response.bytes_stream()));
                *answer.status_mut() = status;
                Ok(answer)
            }
            Way::Wire(wire) => {
                let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
                let json = statement.map(serde_json::to_vec).transpose().map_err(|e| Error::Answer(e.to_string()))?;
                let request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
                let request = request.header(CONTENT_TYPE, "application/json").body(Body::from(json.unwrap_or_default()));
                Ok(wire.send(request.map_err(|e| Error::Address(e.to_string()))?).await?)
            }
        }
    }

    async fn list<T: DeserializeOwned>(&self, path: &str, filters: &[(&str, Option<String>)]) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        let mut query = filters.to_vec();
        query.push(("limit", Some("200".to_owned())));
        for _ in 0..PAGES_MAX {
            let page: Page<T> = self.get(path, &query).await?;
            items.extend(page.items);
            let Some(next) = page.next else { return Ok(items) };
            query.retain(|(name, _)| *name != "cursor");
            query.push(("cursor", Some(next)));
        }
        Err(Error::Answer(format!("more than {PAGES_MAX} pages")))
    }
}

/// The problem document of an answer that is none of success.
async fn refusal(response: Response<Body>) -> Error {
    let status = response.status();
    match read_body(response).await {
        Ok(body) => match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Error::Problem(problem),
            Err(_) => Error::Answer(format!("status {status} without a problem document")),
        },
        Err(error) => error,
    }
}

async fn read_body(response: Response<Body>) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    let mut chunks = response.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Error::Answer(format!("more than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Events as they happen. After an error or the end, open another one after the last event seen.
pub struct EventStream {
    body: BodyDataStream,
    buffer: Vec<u8>,
    waiting: VecDeque<Event>,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl EventStream {
    /// The next event; `None` if the marketplace ended the stream.
    ///
    /// # Errors
    /// [`Error::Broken`] if the connection broke, [`Error::Answer`] if it is no event stream.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let Some(chunk) = self.body.next().await else { return Ok(None) };
            self.buffer.extend_from_slice(&chunk?);
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                self.waiting.extend(parse_event(&block)?);
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(Error::Answer(format!("an event of more than {EVENT_BYTES_MAX} bytes")));
            }
        }
    }
}

/// The event in the `data:` lines of a block; comments have none.
fn parse_event(block: &[u8]) -> Result<Option<Event>, Error> {
    let text = std::str::from_utf8(block).map_err(|e| Error::Answer(e.to_string()))?;
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
    if data.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&data.join("\n")).map(Some).map_err(|e| Error::Answer(e.to_string()))
}
