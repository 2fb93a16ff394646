//! Results of joins on the disks of a majority before the accept leaves, and what a new holder makes of them.
//!
//! A record is sealed to both parties: the witness keeps what it cannot read. Its version stands among the bounds that go with every
//! vote, so whoever takes over knows whether it lacks one, and fetches it from the member that voted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use contracts::ids::{DevEui, Epoch, GroupId, NodeId};
use contracts::node_record::SealingKey;
use contracts::sealed::Sealed;
use contracts::write_ahead::{Bound, JOINS, RecordsView, RecordsWrite, Reserved, SealedRecord};
use lora_bridge::mac::downlink::BLOCK;
use lora_bridge::mac::join::DeviceRecord;
use tokio::sync::{mpsc, watch};

use super::reservations::{Members, Writer};
use super::{Error, Parts};

/// A record is sealed for this.
const PURPOSE: &str = "antirio device record v1";
/// Bytes of one sealed record.
pub const BLOB_BYTES_MAX: usize = 64 << 10;
/// Records that are written at the same time.
const WRITES_MAX: usize = 32;
/// A join's window is over after 6 s.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// A record that the bridge wants written ahead.
pub type Wanted = (Epoch, Box<DeviceRecord>);

/// Under this key a device's record is kept; tenants' own keys cannot begin with a dot.
fn key(device: DevEui) -> String {
    format!(".record.{device}")
}

/// Writes records ahead until the link is closed. A join whose record does not get through is over; the device tries again.
pub async fn run(writer: Writer, mut wanted: mpsc::UnboundedReceiver<Wanted>) {
    let Writer { parts, group, members, seq } = writer;
    let mut writes = tokio::task::JoinSet::new();
    while let Some((epoch, record)) = wanted.recv().await {
        while writes.len() >= WRITES_MAX {
            let _ended = writes.join_next().await;
        }
        let (parts, members, seq) = (parts.clone(), members.borrow().clone(), Arc::clone(&seq));
        writes.spawn(kit::task::belong(async move {
            match write(&parts, group, &members, epoch, &seq, &record).await {
                Ok(true) => {
                    note(&parts, group, &record);
                    let _stopped = parts.bridge.recorded(record).await;
                }
                Ok(false) => tracing::warn!(device = %record.device, "a join was not written ahead by a majority"),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a join cannot be written ahead");
                }
            }
        }));
    }
}

/// The session of a record is the device's session from now on.
fn note(parts: &Parts, group: GroupId, record: &DeviceRecord) {
    let session = &record.session;
    parts.links.set_joined_session(group, record.device, session.dev_addr, session.id());
}

fn bounds(record: &DeviceRecord) -> Vec<Bound> {
    let device = record.device;
    let session = Bound { device, session: record.session.id(), upto: record.session.f_cnt_down_reserved.max(BLOCK) };
    vec![Bound { device, session: JOINS, upto: record.version }, session]
}

/// Both parties of the contract, or this node alone.
fn recipients(parts: &Parts, group: GroupId) -> Vec<SealingKey> {
    let own = parts.core.identity.unsealing.public();
    let other = parts.core.agreements.in_force(group).map(|agreement| super::other_party(&agreement, parts.core.me()));
    let other = other.and_then(|node| parts.core.directory.get(node)).map(|record| record.sealing_key);
    std::iter::once(own).chain(other).collect()
}

fn form(error: impl std::fmt::Display) -> Error {
    Error::Migration(crate::migration::Error::Form(error.to_string()))
}

async fn write(
    parts: &Parts,
    group: GroupId,
    members: &Members,
    epoch: Epoch,
    seq: &AtomicU64,
    record: &DeviceRecord,
) -> Result<bool, Error> {
    if members.epoch.is_some_and(|held| held != epoch) {
        return Ok(false);
    }
    let json = serde_json::to_vec(record).map_err(form)?;
    let sealed = Sealed::seal(&json, &recipients(parts, group), PURPOSE).map_err(form)?;
    let blob = serde_json::to_vec(&sealed).map_err(form)?;
    let bounds = bounds(record);
    keep(parts, group, record.device, &blob, &bounds).await?;
    let needed = members.needed();
    if needed == 0 {
        return Ok(true);
    }
    let sealed = vec![SealedRecord { device: record.device, blob: hex::encode(blob) }];
    let write = Arc::new(RecordsWrite { epoch, seq: seq.fetch_add(1, Ordering::Relaxed) + 1, bounds, sealed });
    let (stored, mut answers) = mpsc::unbounded_channel();
    for member in members.others.clone() {
        let (client, write, stored) = (parts.core.client.within(ANSWER_MAX), Arc::clone(&write), stored.clone());
        // Those that are slower than the majority get it too.
        kit::task::spawn(async move {
            let answer: Result<serde_json::Value, _> =
                client.put(member, &format!("/peer/v1/groups/{group}/records"), write.as_ref()).await;
            let _enough_already = stored.send(answer.is_ok());
        });
    }
    drop(stored);
    let mut have = 0;
    while let Some(is_stored) = answers.recv().await {
        have += usize::from(is_stored);
        if have >= needed {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Blob first: a bound on disk says that the record is there.
async fn keep(parts: &Parts, group: GroupId, device: DevEui, blob: &[u8], bounds: &[Bound]) -> Result<(), Error> {
    parts.core.store.put_tenant_value(group, &key(device), blob, u32::MAX).await?;
    parts.core.store.raise_reserved(group, bounds).await?;
    parts.reserved.raise(group, bounds);
    Ok(())
}

fn open(parts: &Parts, device: DevEui, blob: &[u8]) -> Result<DeviceRecord, Error> {
    let sealed: Sealed = serde_json::from_slice(blob).map_err(form)?;
    let json = parts.core.identity.unsealing.open(&sealed, PURPOSE).map_err(form)?;
    let record: DeviceRecord = serde_json::from_slice(&json).map_err(form)?;
    if record.device == device && record.session.device == device {
        Ok(record)
    } else {
        Err(form(format_args!("a record of {device} names another device")))
    }
}

/// Takes records that another member wrote or kept: on this node's disk, then in its bridge.
///
/// # Errors
/// One cannot be opened, or the disk failed; those before it were taken.
pub(crate) async fn take(parts: &Parts, group: GroupId, sealed: &[SealedRecord]) -> Result<(), Error> {
    for SealedRecord { device, blob } in sealed {
        let blob = hex::decode(blob).map_err(form)?;
        let record = open(parts, *device, &blob)?;
        let known = parts.core.store.list_reserved(group).await?.joins(*device);
        if record.version > known {
            keep(parts, group, *device, &blob, &bounds(&record)).await?;
        }
        if record.version >= known {
            note(parts, group, &record);
            parts.bridge.records(vec![record]).await?;
        }
    }
    Ok(())
}

/// What this node's disk has of devices that join, for its own bridge after a restart.
pub(crate) async fn restore(parts: &Parts, group: GroupId, reserved: &Reserved) -> Result<(), Error> {
    for bound in reserved.bounds().filter(|bound| bound.session == JOINS) {
        let Some(blob) = parts.core.store.get_tenant_value(group, &key(bound.device)).await? else { continue };
        match open(parts, bound.device, &blob) {
            Ok(record) => {
                note(parts, group, &record);
                parts.bridge.records(vec![record]).await?;
            }
            Err(error) => {
                tracing::error!(device = %bound.device, error = &error as &dyn std::error::Error, "a record does not open")
            }
        }
    }
    Ok(())
}

/// What this node keeps, for another member.
pub(crate) async fn view(parts: &Parts, group: GroupId) -> Result<RecordsView, Error> {
    let reserved = parts.core.store.list_reserved(group).await?;
    let mut sealed = Vec::new();
    for bound in reserved.bounds().filter(|bound| bound.session == JOINS) {
        if let Some(blob) = parts.core.store.get_tenant_value(group, &key(bound.device)).await? {
            sealed.push(SealedRecord { device: bound.device, blob: hex::encode(blob) });
        }
    }
    Ok(RecordsView { bounds: reserved.bounds().collect(), sealed })
}

/// Fetches records from the other members whenever the bridge misses some, until the link is closed. A member that is away is asked again
/// when something is missed again.
pub async fn follow(parts: Parts, group: GroupId, members: Vec<NodeId>, mut missing: watch::Receiver<u64>) {
    while missing.changed().await.is_ok() {
        for member in members.iter().filter(|member| **member != parts.core.me()) {
            if let Err(error) = pull(&parts, group, *member).await {
                tracing::debug!(%member, error = &error as &dyn std::error::Error, "records of joins cannot be fetched now");
            }
        }
    }
}

async fn pull(parts: &Parts, group: GroupId, member: NodeId) -> Result<(), Error> {
    let client = parts.core.client.within(ANSWER_MAX);
    let view: RecordsView = client.get(member, &format!("/peer/v1/groups/{group}/records")).await?;
    let own = parts.core.store.list_reserved(group).await?;
    let mut theirs = Reserved::default();
    theirs.raise_all(&view.bounds);
    let wanted: Vec<_> =
        view.sealed.into_iter().filter(|sealed| theirs.joins(sealed.device) > own.joins(sealed.device)).collect();
    take(parts, group, &wanted).await
}

/// Fetches from a member what it knows and this node lacks: before this node serves.
pub(crate) async fn fetch(parts: &Parts, group: GroupId, member: NodeId, theirs: &Reserved, own: &Reserved) -> Result<(), Error> {
    let newer = |device: DevEui| theirs.joins(device) > own.joins(device);
    if !theirs.bounds().any(|bound| bound.session == JOINS && newer(bound.device)) {
        return Ok(());
    }
    let client = parts.core.client.within(ANSWER_MAX);
    let view: RecordsView = client.get(member, &format!("/peer/v1/groups/{group}/records")).await?;
    let wanted: Vec<_> = view.sealed.into_iter().filter(|sealed| newer(sealed.device)).collect();
    take(parts, group, &wanted).await
}
