//! The REST routes of a device service (device-sdk-go, `openapi/device-sdk.yaml` 4.0.0). Callbacks and validation are not among them: since
//! version 3 they come over the bus.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc};

use super::{
    API_VERSION,
    bus::{Bus, base_response, event_response},
    command::{Commands, Error},
};
use crate::{
    outside::Stream,
    sinks::{
        Message,
        chirpstack::rfc3339,
        downlink::{new_id, now_ms},
    },
};

/// Ties an answer to its request.
const CORRELATION: HeaderName = HeaderName::from_static("x-correlation-id");
/// Largest body.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Connections at a time.
const CONNECTIONS_MAX: usize = 8;
/// For the head of a request.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// What the routes work with.
#[derive(Debug, Clone)]
pub struct Context {
    pub commands: Commands,
    pub bus: Bus,
    /// To the bus.
    pub outbox: mpsc::Sender<Message>,
}

/// All routes.
pub fn router(context: Context) -> Router {
    let api = Router::new()
        .route("/ping", get(ping))
        .route("/version", get(version))
        .route("/config", get(config))
        .route("/secret", post(secret))
        .route("/device/name/{name}/{command}", get(read).put(set))
        .route("/discovery", post(discover).delete(not_implemented))
        .route("/discovery/requestId/{id}", delete(no_discovery))
        .route("/profilescan", post(not_implemented))
        .route("/profilescan/device/name/{name}", delete(not_implemented))
        .method_not_allowed_fallback(|| async { problem(405, "the method is not allowed here") })
        .fallback(|| async { problem(404, "no such route") });
    Router::new()
        .nest("/api/v3", api)
        .fallback(|| async { problem(404, "no such route") })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(correlate))
        .with_state(Arc::new(context))
}

/// Serves connections as they come; nothing to do if none can come.
pub async fn serve(incoming: Option<mpsc::Receiver<Stream>>, router: Router) {
    let Some(mut incoming) = incoming else { return };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Some(stream) = incoming.recv().await else { return };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let _place = place;
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(64 << 10);
            // Its end is the client's business.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// Every answer has the correlation id of its request, or a new one.
async fn correlate(request: Request, next: Next) -> Response {
    let given = request.headers().get(&CORRELATION).cloned();
    let mut response = next.run(request).await;
    if let Some(id) = given.or_else(|| HeaderValue::from_str(&new_id()).ok()) {
        response.headers_mut().insert(CORRELATION, id);
    }
    response
}

fn answer(status: u16, document: Value) -> Response {
    (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(document)).into_response()
}

fn problem(status: u16, message: &str) -> Response {
    answer(status, json!({"apiVersion": API_VERSION, "requestId": new_id(), "statusCode": status, "message": message}))
}

fn refused(error: &Error) -> Response {
    problem(error.status(), &error.to_string())
}

type Shared = State<Arc<Context>>;

async fn ping(State(context): Shared) -> Response {
    let service = &context.commands.registry().settings().service;
    answer(200, json!({"apiVersion": API_VERSION, "timestamp": rfc3339(now_ms()), "serviceName": service}))
}

async fn version(State(context): Shared) -> Response {
    let (service, version) = (&context.commands.registry().settings().service, env!("CARGO_PKG_VERSION"));
    answer(200, json!({"apiVersion": API_VERSION, "version": version, "sdk_version": version, "serviceName": service}))
}

/// Without anything secret.
async fn config(State(context): Shared) -> Response {
    let settings = context.commands.registry().settings();
    let config = json!({
        "MessageBus": {"Type": "mqtt", "Broker": settings.broker.address, "BaseTopicPrefix": settings.topic_prefix},
        "Clients": {"core-metadata": settings.core_metadata},
        "Service": {"BaseAddress": settings.base_address},
        "Device": {"Discovery": {"Enabled": false}, "ProfilesDir": null, "Devices": context.commands.registry().all().len()},
    });
    answer(200, json!({"apiVersion": API_VERSION, "config": config, "serviceName": settings.service}))
}

async fn secret(body: Bytes) -> Response {
    match serde_json::from_slice::<Value>(&body) {
        Ok(document) if document["secretName"].is_string() && document["secretData"].is_array() => {
            problem(500, "this service has no secret store: its secrets come sealed with its configuration")
        }
        Ok(_) | Err(_) => problem(400, "secretName and secretData are required"),
    }
}

async fn read(
    State(context): Shared,
    Path((device, command)): Path<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let event = match context.commands.get(&device, &command) {
        Ok(event) => event,
        Err(error) => return refused(&error),
    };
    let asked = |name: &str| query.get(name).map(String::as_str);
    if asked("ds-pushevent") == Some("true") && context.outbox.try_send(context.bus.event(&event)).is_err() {
        return problem(500, "the bus does not take the event");
    }
    answer(200, if asked("ds-returnevent") == Some("false") { base_response(200) } else { event_response(&event) })
}

async fn set(State(context): Shared, Path((device, command)): Path<(String, String)>, body: Bytes) -> Response {
    let Ok(settings) = serde_json::from_slice::<Map<String, Value>>(&body) else {
        return problem(400, "the body is not a JSON object");
    };
    match context.commands.set(&device, &command, &settings).await {
        Ok(()) => answer(200, base_response(200)),
        Err(error) => refused(&error),
    }
}

/// Devices come with the configuration.
async fn discover(State(context): Shared) -> Response {
    if context.commands.registry().is_locked() {
        return refused(&Error::ServiceLocked);
    }
    problem(503, "device discovery is disabled: devices come with the configuration")
}

async fn no_discovery() -> Response {
    problem(404, "no discovery with this request id is running")
}

async fn not_implemented() -> Response {
    problem(501, "not implemented")
}
