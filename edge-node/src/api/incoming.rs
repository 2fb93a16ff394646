//! Image files that the operator put beside the node, taken into the content store.
//!
//! A request names a file, never a path: files lie in [`DIRECTORY`] below the state directory, so that nobody who reaches the API can
//! have any other file of this machine read.

use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use engine::image::{ImageLimits, inspect};
use kit::problem::Problem;
use storage::Cid;

use super::reports::Import;
use super::{App, failed};
use crate::timeline::Event;

/// Where files to be taken in lie, below the state directory.
pub const DIRECTORY: &str = "incoming";
/// Names of images and files are at most this long.
const NAME_BYTES_MAX: usize = 96;

/// Letters, digits, `.`, `_`, `-`; not hidden.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), Problem> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let holds = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_plain);
    let rule = format_args!("1 to {NAME_BYTES_MAX} letters, digits, dots, underscores and hyphens; no dot at its beginning");
    if holds { Ok(()) } else { Err(Problem::invalid(field, rule)) }
}

/// The pin's label of an image that was taken in.
fn label(image_name: &str) -> String {
    format!("operator image {image_name}")
}

/// Checks that a file is an image, stores it as content, pins it under its name and notes it. Another image of the same name loses its pin.
///
/// # Errors
/// No such file, no image or not the `expected` one (by image id), no room, or another file is being taken in.
pub(super) async fn import(app: &App, image_name: &str, file_name: &str, expected: Option<&str>) -> Result<Import, Problem> {
    check_name("imageName", image_name)?;
    check_name("fileName", file_name)?;
    let _only_one = app.imports.try_acquire().map_err(|_| Problem::unavailable("another file is being taken in"))?;
    if !app.reports.has_room(image_name).await {
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "limit-reached", "a limit of the node is reached");
        return Err(problem.detail(format_args!("at most {} images are taken in", super::reports::IMPORTS_MAX)));
    }
    let core = app.core();
    let path = core.config.state_directory.join(DIRECTORY).join(file_name);
    let image_id = inspect_file(path.clone(), file_name).await?;
    if let Some(expected) = expected.filter(|expected| *expected != image_id) {
        return Err(Problem::conflict(format_args!("the file has image {image_id}, wanted is {expected}")).field("fileName"));
    }
    let file = tokio::fs::File::open(&path).await.map_err(|e| failed("open an incoming file", &e))?;
    let cid = core.content.add(file, &label(image_name)).await.map_err(|e| refused(&e))?;
    let bytes = core.content.total_bytes(&cid).await.map_err(|e| refused(&e))?;
    let import = Import { image_id, cid: cid.to_string(), bytes, at: core.clock.wall() };
    let before = app.reports.add_import(image_name.to_owned(), import.clone()).await.map_err(|e| failed("note an image", &e))?;
    if let Some(before) = before.and_then(|import| storage::parse_cid(&import.cid).ok()).filter(|before: &Cid| *before != cid) {
        core.content.unpin(&before, &label(image_name)).await.map_err(|e| refused(&e))?;
    }
    core.timeline.push(Event::ContentStored { cid: import.cid.clone(), bytes });
    Ok(import)
}

/// The id of the image in a file: every layer is read and checked.
async fn inspect_file(path: PathBuf, name: &str) -> Result<String, Problem> {
    let inspected = kit::task::blocking(move || {
        check_file(&path)?;
        inspect(&path, ImageLimits::default()).map(|(id, _)| id.to_string()).map_err(Refused::Image)
    });
    match inspected.await.map_err(|e| failed("inspect an incoming file", &e))? {
        Ok(id) => Ok(id),
        Err(Refused::Absent) => {
            Err(Problem::not_found(format_args!("no file {name} in the directory `{DIRECTORY}` below the state directory"))
                .field("fileName"))
        }
        Err(Refused::NoFile) => Err(Problem::invalid("fileName", "not an ordinary file")),
        Err(Refused::Image(error)) => Err(Problem::invalid("fileName", format_args!("not an image: {error}"))),
        Err(Refused::Io(error)) => Err(failed("inspect an incoming file", &error)),
    }
}

enum Refused {
    Absent,
    NoFile,
    Image(engine::image::Error),
    Io(std::io::Error),
}

fn check_file(path: &Path) -> Result<(), Refused> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(Refused::NoFile),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Refused::Absent),
        Err(error) => Err(Refused::Io(error)),
    }
}

/// What the content store refused.
pub(super) fn refused(error: &storage::Error) -> Problem {
    match error {
        storage::Error::Full { .. } => {
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "store-full", "the content store has no room for it").detail(error)
        }
        other => failed("use the content store", other),
    }
}
