//! `/filecoin_interface/…`: storage of images. Here it is the node's own content store; no Filecoin archive is behind it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body as Stream;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use storage::Cid;
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};

use super::{ImageStatus, ImageView, customer, take_report};
use crate::api::incoming::{self, check_name, refused};
use crate::api::input::{Body, Params};
use crate::api::reports::ReportedError;
use crate::api::{App, ProblemSchema, failed, not_configured};
use crate::timeline::Event;

/// An error's message is at most this long.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// Days for which storage can be asked.
const DAYS_MAX: u32 = 3_650;
/// Bytes read at a time while content is streamed.
const STREAM_BYTES: usize = 64 << 10;

fn no_archive() -> Problem {
    not_configured("there is no Filecoin archive: content is kept by this node and fetched from peers")
}

/// What is said of an image in the storage network.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct DealReport {
    imageid: String,
    #[serde(rename = "imageHash")]
    image_hash: String,
    /// `STORED`, `COMMITTED` or `READY2DOWNLOAD`.
    status: ImageStatus,
}

/// Notes that an own image is stored, or ready to be downloaded, if the content store has all of it. `COMMITTED` is the word of a
/// Filecoin deal, of which nobody can know here.
#[utoipa::path(post, path = "/filecoin_interface/backend/image", tag = "source", request_body = DealReport, responses(
    (status = 200, body = ImageView),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json", description = "404: no such image; 409: not true"),
    (status = 501, body = ProblemSchema, content_type = "application/problem+json", description = "No Filecoin archive is configured")
))]
pub(in crate::api) async fn report_deal(
    State(app): State<Arc<App>>,
    Body(report): Body<DealReport>,
) -> Result<Json<ImageView>, Problem> {
    match report.status {
        ImageStatus::Stored | ImageStatus::Ready2download => {}
        ImageStatus::Committed => return Err(no_archive()),
        ImageStatus::Downloaded => return Err(Problem::invalid("status", "STORED, COMMITTED or READY2DOWNLOAD")),
    }
    let view = customer::images(&app).await?.into_iter().find(|view| view.image_id == report.imageid);
    let view = view.ok_or_else(|| Problem::not_found("this node has no own image of this id").field("imageid"))?;
    take_report(&app, view, Some(&report.image_hash), report.status).await.map(Json)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct Wanted {
    /// Names the file that is downloaded.
    image_name: String,
    /// Content id of the image.
    image_hash: String,
    /// The storage provider of a Filecoin archive.
    miner_address: Option<String>,
}

/// The image file, streamed. It has to be complete in the content store: there is no archive from which it could be fetched.
#[utoipa::path(get, path = "/filecoin_interface/orchestrator/image", tag = "source", params(Wanted), responses(
    (status = 200, body = Vec<u8>, content_type = "application/x-tar"),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 501, body = ProblemSchema, content_type = "application/problem+json",
        description = "Not here, and no Filecoin archive is configured in which `minerAddress` could be asked")
))]
pub(in crate::api) async fn get_image(
    State(app): State<Arc<App>>,
    Params(wanted): Params<Wanted>,
) -> Result<impl IntoResponse, Problem> {
    check_name("imageName", &wanted.image_name)?;
    let cid = storage::parse_cid(&wanted.image_hash).map_err(|e| Problem::invalid("imageHash", e))?;
    let store = &app.core().content;
    let is_kept = store.pins().iter().any(|pin| pin.cid == cid);
    if !is_kept || !store.missing(&cid).await.map_err(|e| failed("look for blocks", &e))?.is_empty() {
        return Err(absent(&cid, wanted.miner_address.as_deref()));
    }
    let content = store.read(&cid).await.map_err(|e| match e {
        storage::Error::Missing(_) | storage::Error::Corrupt(_) => absent(&cid, None),
        storage::Error::NotAFile(_) => Problem::invalid("imageHash", "not a file"),
        other => failed("read content", &other),
    })?;
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_LENGTH, content.bytes().to_string()),
        (header::ETAG, format!("\"{cid}\"")),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}.tar\"", wanted.image_name)),
    ];
    Ok((headers, Stream::from_stream(ReaderStream::with_capacity(content, STREAM_BYTES))))
}

fn absent(cid: &Cid, miner: Option<&str>) -> Problem {
    match miner {
        Some(_) => no_archive(),
        None => Problem::not_found(format_args!("{cid} is not complete in the content store")).field("imageHash"),
    }
}

/// An image to be stored.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::api) struct ToStore {
    /// The name under which it is kept; another image of the same name is replaced.
    image_name: String,
    /// Days, 1 to 3,650. It is the duration of a deal with an archive; this node keeps the image until it is replaced.
    storage_duration: u32,
    /// A file in the directory `incoming` below the state directory.
    file_name: String,
}

/// What was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct StoredView {
    image_id: String,
    image_name: String,
    /// Content id (`CIDv1`).
    image_hash: String,
    bytes: u64,
    /// `STORED`: in this node's content store.
    status: ImageStatus,
    /// `not-configured`: nobody else keeps it, and no deal was made.
    archive: &'static str,
}

/// Stores an image file in the node's own content store.
#[utoipa::path(post, path = "/filecoin_interface/orchestrator/image", tag = "source", request_body = ToStore, responses(
    (status = 201, body = StoredView),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "Another file is being taken in"),
    (status = 507, body = ProblemSchema, content_type = "application/problem+json", description = "The content store is full")
))]
pub(in crate::api) async fn store_image(
    State(app): State<Arc<App>>,
    Body(wanted): Body<ToStore>,
) -> Result<(StatusCode, Json<StoredView>), Problem> {
    if !(1..=DAYS_MAX).contains(&wanted.storage_duration) {
        return Err(Problem::invalid("storageDuration", format_args!("1 to {DAYS_MAX} days")));
    }
    let import = incoming::import(&app, &wanted.image_name, &wanted.file_name, None).await?;
    let stored = StoredView {
        image_id: import.image_id,
        image_name: wanted.image_name,
        image_hash: import.cid,
        bytes: import.bytes,
        status: ImageStatus::Stored,
        archive: "not-configured",
    };
    Ok((StatusCode::CREATED, Json(stored)))
}

/// An error of the storage network.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::api) struct ErrorReport {
    /// What the error is about.
    #[serde(default)]
    error_object: Option<serde_json::Value>,
    code: i64,
    /// 1 to 1,024 bytes.
    message: String,
}

/// Notes an error on disk (the last hundred are kept) and raises an alarm among the node's events.
#[utoipa::path(post, path = "/filecoin_interface/backend/error", tag = "source", request_body = ErrorReport, responses(
    (status = 204), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(in crate::api) async fn report_error(
    State(app): State<Arc<App>>,
    Body(report): Body<ErrorReport>,
) -> Result<StatusCode, Problem> {
    if report.message.is_empty() || report.message.len() > MESSAGE_BYTES_MAX {
        return Err(Problem::invalid("message", format_args!("1 to {MESSAGE_BYTES_MAX} bytes")));
    }
    let what = format!("the storage network reported error {}: {}", report.code, report.message);
    let error =
        ReportedError { code: report.code, message: report.message, object: report.error_object, at: app.core().clock.wall() };
    app.reports.add_error(error).await.map_err(|e| failed("note an error", &e))?;
    app.core().timeline.push(Event::Alarm { what });
    Ok(StatusCode::NO_CONTENT)
}

/// How storage is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct StorageHealth {
    /// `UP`: content can be stored and read here.
    status: &'static str,
    blocks: u64,
    bytes: u64,
    limit_bytes: u64,
    /// `not-configured`: there is no Filecoin archive.
    archive: &'static str,
    /// Errors that were reported and are kept.
    errors: usize,
}

/// Whether content can be stored and read.
#[utoipa::path(get, path = "/filecoin_interface/health", tag = "source", responses(
    (status = 200, body = StorageHealth),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "The store is full or does not answer")
))]
pub(in crate::api) async fn check_health(State(app): State<Arc<App>>) -> Result<Json<StorageHealth>, Problem> {
    let store = &app.core().content;
    let usage = store.usage();
    if usage.bytes >= usage.limit_bytes {
        return Err(Problem::unavailable("the content store is full"));
    }
    // A look at the disk: any kept root will do.
    if let Some(pin) = store.pins().first() {
        store.has(&pin.cid).await.map_err(|e| refused(&e))?;
    }
    let errors = app.reports.kept().await.errors.len();
    let (blocks, bytes, limit_bytes) = (usage.blocks, usage.bytes, usage.limit_bytes);
    Ok(Json(StorageHealth { status: "UP", blocks, bytes, limit_bytes, archive: "not-configured", errors }))
}
