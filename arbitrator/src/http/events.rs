//! `/v1/events`: server-sent events that can be resumed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use kit::input::{Params, last_event};
use kit::problem::{Problem, Refusal};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::IntoParams;

use super::App;
use super::input::window;
use crate::resource::{EventView, ProblemSchema};

/// A comment is sent this often on a quiet stream, so that dead connections are noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events read from the store at a time.
const EVENTS_PER_READ: u32 = 100;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventParams {
    /// As the header `Last-Event-ID` (which wins): the last event seen; `0` for all.
    after: Option<u64>,
}

/// What happens from now on, or after the last event seen. The SSE id is the event's number, the data its JSON.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(EventParams, ("Last-Event-ID" = Option<u64>, Header, description = "The last event seen")), responses(
    (status = 200, body = EventView, content_type = "text/event-stream"),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "Too many streams")
))]
pub(super) async fn stream_events(
    State(app): State<Arc<App>>,
    Params(params): Params<EventParams>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Refusal> {
    let seen = last_event(&headers, params.after)?;
    let permit =
        Arc::clone(&app.streams).try_acquire_owned().map_err(|_| Problem::unavailable("too many event streams are open"))?;
    let changed = app.service.watch_events();
    let after = match seen {
        Some(seen) => window(Some(seen), None)?.0,
        None => *changed.borrow(),
    };
    app.service.metrics.event_streams.inc();
    let stopping = app.stopping.clone();
    let cursor = Cursor { app, after, waiting: VecDeque::new(), changed, stopping, _permit: permit };
    let events = unfold(cursor, |mut cursor| async {
        let event = cursor.next().await?;
        let sse = sse::Event::default().id(event.seq.to_string()).json_data(&event).ok()?;
        Some((Ok(sse), cursor))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Where one stream stands.
struct Cursor {
    app: Arc<App>,
    after: u64,
    waiting: VecDeque<EventView>,
    changed: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Cursor {
    /// The next event; `None` ends the stream (draining, or the store failed: the client comes back with its last id).
    async fn next(&mut self) -> Option<EventView> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.after = event.seq;
                return Some(event);
            }
            if *self.changed.borrow_and_update() > self.after {
                let rows = self.app.service.list_events(self.after, EVENTS_PER_READ).await;
                let rows = rows.inspect_err(|error| tracing::error!(%error, "an event stream ends")).ok()?;
                self.waiting = rows.into_iter().map(|row| EventView { seq: row.seq, at: row.at, body: row.body }).collect();
                if !self.waiting.is_empty() {
                    continue;
                }
            }
            tokio::select! {
                biased;
                _ = self.stopping.wait_for(|stop| *stop) => return None,
                changed = self.changed.changed() => changed.ok()?,
            }
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.app.service.metrics.event_streams.dec();
    }
}
