//! `/v1/events`: what happened and happens, as server-sent events that can be resumed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use kit::input::last_event;
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use utoipa::{IntoParams, ToSchema};

use super::input::Params;
use super::{App, ProblemSchema};
use crate::timeline::{Entry, Timeline};

/// A comment is sent this often on a quiet stream, so that dead connections are noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventParams {
    /// As the header `Last-Event-ID` (which wins): the last event seen; absent or 0 for all that are kept.
    after: Option<u64>,
}

/// One thing that happened; further fields as the kind of event has them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Entry)]
struct EntrySchema {
    /// Rises by one; the id of the server-sent event. Begins anew when the node restarts.
    seq: u64,
    /// Milliseconds since the Unix epoch.
    at: u64,
    /// `started`, `armed`, `custody_gained`, `taken_over`, `released`, `handed_back` …
    event: String,
}

/// What is kept (the last thousand events) behind the last one seen, and everything from now on. The SSE id is the event's number, the data
/// its JSON. A number beyond the newest is of an earlier run of the node: then everything that is kept comes.
#[utoipa::path(get, path = "/v1/events", tag = "node", params(
    EventParams, ("Last-Event-ID" = Option<u64>, Header, description = "The last event seen")
), responses(
    (status = 200, body = EntrySchema, content_type = "text/event-stream"),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json", description = "410: events behind it are not kept any more"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "Too many streams")
))]
pub(super) async fn follow_events(
    State(app): State<Arc<App>>,
    Params(params): Params<EventParams>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Problem> {
    let seen = last_event(&headers, params.after)?.unwrap_or(0);
    let place =
        Arc::clone(&app.streams).try_acquire_owned().map_err(|_| Problem::unavailable("too many event streams are open"))?;
    let follower = Follower::new(app.core().timeline.clone(), seen, place)?;
    let events = unfold(follower, |mut follower| async {
        let entry = follower.next().await?;
        let event = sse::Event::default().id(entry.seq.to_string()).json_data(&entry).ok()?;
        Some((Ok(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Where one stream stands.
struct Follower {
    timeline: Timeline,
    seen: u64,
    waiting: VecDeque<Entry>,
    live: broadcast::Receiver<Entry>,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    fn new(timeline: Timeline, seen: u64, place: OwnedSemaphorePermit) -> Result<Self, Problem> {
        let (kept, live) = timeline.follow(0);
        let newest = kept.last().map_or(0, |entry| entry.seq);
        let seen = if seen > newest { 0 } else { seen };
        if let Some(oldest) = kept.first().filter(|oldest| seen > 0 && oldest.seq > seen + 1) {
            let problem =
                Problem::new(StatusCode::GONE, "events-gone", "these events are not kept any more").field("Last-Event-ID");
            return Err(problem.detail(format_args!("the oldest that is kept is {}", oldest.seq)));
        }
        Ok(Self { timeline, seen, waiting: kept.into(), live, _place: place })
    }

    async fn next(&mut self) -> Option<Entry> {
        loop {
            while let Some(entry) = self.waiting.pop_front() {
                if entry.seq > self.seen {
                    self.seen = entry.seq;
                    return Some(entry);
                }
            }
            match self.live.recv().await {
                Ok(entry) => self.waiting.push_back(entry),
                // Too slow for the live stream: what was missed is still kept, unless a thousand more have happened.
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let (kept, live) = self.timeline.follow(self.seen);
                    (self.waiting, self.live) = (kept.into(), live);
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
