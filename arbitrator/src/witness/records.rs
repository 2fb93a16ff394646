//! `/peer/v1/groups/{group}/records`: what holders write ahead. On disk before the answer; the newest goes with every grant.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Extension, Json, Router};
use contracts::custody::MemberIndex;
use contracts::envelope::Invalid;
use contracts::ids::{DevEui, GroupId, NodeId};
use contracts::resources::INTEGER_MAX;
use contracts::write_ahead::{RecordsPage, RecordsQuery, Reservation, SESSIONS_MAX};
use kit::input::{Id, Params};
use kit::problem::Refusal;
use peering::PeerIdentity;

use super::{Driven, Witness, lock};
use crate::http::Body;
use crate::resource::{RecordsView, RecordsWrite, Sealed};
use crate::service::Error;
use crate::store::RecordsError;

/// The body of one write.
pub const WRITE_BYTES_MAX: usize = 4 << 20;
/// The sealed record of one device.
pub const SEALED_BLOB_BYTES_MAX: usize = 64 << 10;

pub(super) fn router(witness: Arc<Witness>) -> Router {
    Router::new()
        .route("/peer/v1/groups/{group}/records", get(get_records).put(put_records))
        .layer(DefaultBodyLimit::max(WRITE_BYTES_MAX))
        .with_state(witness)
}

/// Stores a holder's reservation and sealed records; 204 when they are on disk.
async fn put_records(
    State(witness): State<Arc<Witness>>,
    Extension(PeerIdentity(from)): Extension<PeerIdentity>,
    Id(group): Id<GroupId>,
    Body(write): Body<RecordsWrite>,
) -> Result<StatusCode, Refusal> {
    let worker = Arc::clone(&witness);
    witness.writes.run(async move { worker.put_records(from, group, write).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A page of what is kept of a group, for its members.
async fn get_records(
    State(witness): State<Arc<Witness>>,
    Extension(PeerIdentity(from)): Extension<PeerIdentity>,
    Id(group): Id<GroupId>,
    Params(RecordsQuery { after }): Params<RecordsQuery>,
) -> Result<Json<RecordsView>, Refusal> {
    Ok(Json(witness.get_records(from, group, after).await?))
}

fn sealed_blob(sealed: &Sealed) -> Result<Vec<u8>, Invalid> {
    let blob = hex::decode(&sealed.blob).map_err(|_| Invalid { field: "sealed", reason: "a blob is hexadecimal" })?;
    Invalid::unless(blob.len() <= SEALED_BLOB_BYTES_MAX, "sealed", "at most 64 KiB a device").map(|()| blob)
}

impl Witness {
    /// The group, if `from` is a member of it.
    fn group_of(&self, from: NodeId, group: GroupId) -> Result<Driven, Error> {
        let driven = lock(&self.driven).get(&group).cloned();
        driven.filter(|driven| driven.config.members.contains(&from)).ok_or(Error::NotAMember(from))
    }

    async fn put_records(&self, from: NodeId, group: GroupId, write: RecordsWrite) -> Result<(), Error> {
        let driven = self.group_of(from, group)?;
        let invalid = |invalid: Invalid| Error::Statement(invalid.into());
        check(&write, &driven).map_err(invalid)?;
        let sealed = write
            .sealed
            .iter()
            .map(|sealed| Ok((sealed.device, sealed_blob(sealed)?)))
            .collect::<Result<Vec<_>, Invalid>>()
            .map_err(invalid)?;
        let place = driven.config.candidates.iter().position(|candidate| *candidate == from);
        let place = place.and_then(|_| driven.config.members.iter().position(|member| *member == from));
        let holder = place.and_then(|place| u8::try_from(place).ok()).map(MemberIndex);
        let voted = self.service.store.votes(group).await?.unwrap_or_default();
        let holder = holder.filter(|holder| voted.voted_epoch == write.epoch && voted.holder() == Some(*holder));
        let holder = holder.ok_or(Error::Records(RecordsError::NotTheHolder { voted_epoch: voted.voted_epoch }))?;
        let reservation = Reservation { epoch: write.epoch, seq: write.seq, bounds: write.bounds };
        let announced = self.reserved.announce(group, &reservation.bounds);
        let stored = self.service.store.put_records(group, holder, &reservation, &sealed).await;
        self.reserved.end(group, announced, &reservation.bounds, stored.is_ok());
        stored?;
        self.service.metrics.records_stored.inc();
        Ok(())
    }

    async fn get_records(&self, from: NodeId, group: GroupId, after: Option<DevEui>) -> Result<RecordsView, Error> {
        self.group_of(from, group)?;
        let records = self.service.store.records(group).await?;
        let mut page = RecordsPage::default();
        for row in records.sealed.into_iter().filter(|row| Some(row.device) > after) {
            if !page.add(Sealed { device: row.device, blob: hex::encode(row.blob) }) {
                break;
            }
        }
        Ok(page.finish(records.bounds.into_iter(), after))
    }
}

fn check(write: &RecordsWrite, driven: &Driven) -> Result<(), Invalid> {
    Invalid::unless(write.epoch.0 <= INTEGER_MAX && write.seq <= INTEGER_MAX, "seq", "too large")?;
    Invalid::unless(write.bounds.len() <= SESSIONS_MAX, "bounds", "too many")?;
    Invalid::unless(!write.bounds.is_empty() || !write.sealed.is_empty(), "bounds", "nothing to store")?;
    let sealed: BTreeSet<_> = write.sealed.iter().map(|sealed| sealed.device).collect();
    Invalid::unless(sealed.len() == write.sealed.len(), "sealed", "every device once")?;
    let mut devices = write.bounds.iter().map(|bound| bound.device).chain(sealed);
    Invalid::unless(devices.all(|device| driven.devices.contains(&device)), "bounds", "a device is not in the contract")
}
