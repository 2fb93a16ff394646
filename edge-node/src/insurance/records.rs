//! Results of joins on the disks of a majority before the accept leaves, changes of receive windows before they are asked for, and what a
//! new holder makes of them.
//!
//! The record of a join is sealed to both parties: the witness keeps what it cannot read. Where a device listens is no secret. Versions
//! stand among the bounds that go with every vote, so whoever takes over knows whether it lacks one, and fetches it from the member that
//! voted. A member keeps one blob per device, so each write names the newest of both kinds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use contracts::ids::{DevEui, Epoch, GroupId, NodeId};
use contracts::node_record::SealingKey;
use contracts::sealed::Sealed;
use contracts::write_ahead::{Bound, JOINS, LINKS, RecordsView, RecordsWrite, Reserved, SealedRecord, is_session};
use lora_bridge::mac::downlink::BLOCK;
use lora_bridge::mac::join::DeviceRecord;
use lora_bridge::mac::link::LinkRecord;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, watch};

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
pub type Wanted = (Epoch, Record);

/// What is written ahead of a device.
#[derive(Debug)]
pub enum Record {
    Join(Box<DeviceRecord>),
    Link(Box<LinkRecord>),
}

/// What members keep of a device.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    join: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<LinkRecord>,
}

/// Under this key a device's record is kept; tenants' own keys cannot begin with a dot.
fn key(device: DevEui) -> String {
    format!(".record.{device}")
}

fn link_key(device: DevEui) -> String {
    format!(".link.{device}")
}

/// Writes records ahead until the link is closed. A join whose record does not get through is over; the device tries again.
pub async fn run(writer: Writer, mut wanted: mpsc::UnboundedReceiver<Wanted>) {
    let Writer { parts, group, members, seq } = writer;
    let mut writes = tokio::task::JoinSet::new();
    // From what is read of the disk to the number of the write: a member keeps the blob with the highest number.
    let order = Arc::new(Mutex::new(()));
    while let Some((epoch, record)) = wanted.recv().await {
        while writes.len() >= WRITES_MAX {
            let _ended = writes.join_next().await;
        }
        let (parts, members, seq, order) = (parts.clone(), members.borrow().clone(), Arc::clone(&seq), Arc::clone(&order));
        writes.spawn(kit::task::belong(async move {
            match write(&parts, group, &members, epoch, (&seq, &order), &record).await {
                Ok(true) => {
                    let _stopped = match record {
                        Record::Join(record) => {
                            note(&parts, group, &record);
                            parts.bridge.recorded(record).await
                        }
                        Record::Link(record) => parts.bridge.link_recorded(record).await,
                    };
                }
                Ok(false) => tracing::warn!(device = %record.device(), "a record was not written ahead by a majority"),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a record cannot be written ahead");
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

impl Record {
    const fn device(&self) -> DevEui {
        match self {
            Self::Join(record) => record.device,
            Self::Link(record) => record.device,
        }
    }

    fn key(&self) -> String {
        match self {
            Self::Join(record) => key(record.device),
            Self::Link(record) => link_key(record.device),
        }
    }
}

const fn link_bound(record: &LinkRecord) -> Bound {
    Bound { device: record.device, session: LINKS, upto: record.version }
}

fn sealed(parts: &Parts, group: GroupId, record: &DeviceRecord) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(record).map_err(form)?;
    let sealed = Sealed::seal(&json, &recipients(parts, group), PURPOSE).map_err(form)?;
    serde_json::to_vec(&sealed).map_err(form)
}

/// All that this node's disk has of a device, as members keep it.
async fn kept_bytes(parts: &Parts, group: GroupId, device: DevEui) -> Result<Vec<u8>, Error> {
    let (join, link) = (on_disk(parts, group, &key(device)).await?, on_disk(parts, group, &link_key(device)).await?);
    serde_json::to_vec(&Kept { join, link }).map_err(form)
}

async fn on_disk<T: serde::de::DeserializeOwned>(parts: &Parts, group: GroupId, key: &str) -> Result<Option<T>, Error> {
    let blob = parts.core.store.get_tenant_value(group, key).await?;
    blob.map(|blob| serde_json::from_slice(&blob).map_err(form)).transpose()
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
    (seq, order): (&AtomicU64, &Mutex<()>),
    record: &Record,
) -> Result<bool, Error> {
    if members.epoch.is_some_and(|held| held != epoch) {
        return Ok(false);
    }
    let device = record.device();
    let ordered = order.lock().await;
    let (blob, bounds) = match record {
        Record::Join(record) => (sealed(parts, group, record)?, bounds(record)),
        Record::Link(record) => (serde_json::to_vec(record).map_err(form)?, vec![link_bound(record)]),
    };
    keep(parts, group, &record.key(), &blob, &bounds).await?;
    let needed = members.needed();
    if needed == 0 {
        return Ok(true);
    }
    let sealed = vec![SealedRecord { device, blob: hex::encode(kept_bytes(parts, group, device).await?) }];
    let write = Arc::new(RecordsWrite { epoch, seq: seq.fetch_add(1, Ordering::Relaxed) + 1, bounds, sealed });
    drop(ordered);
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
async fn keep(parts: &Parts, group: GroupId, key: &str, blob: &[u8], bounds: &[Bound]) -> Result<(), Error> {
    parts.core.store.put_tenant_value(group, key, blob, u32::MAX).await?;
    parts.core.store.raise_reserved(group, bounds).await?;
    parts.reserved.raise(group, bounds);
    Ok(())
}

fn open(parts: &Parts, device: DevEui, sealed: &Sealed) -> Result<DeviceRecord, Error> {
    let json = parts.core.identity.unsealing.open(sealed, PURPOSE).map_err(form)?;
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
        let kept: Kept = serde_json::from_slice(&hex::decode(blob).map_err(form)?).map_err(form)?;
        let known = parts.core.store.list_reserved(group).await?;
        if let Some(sealed) = &kept.join {
            take_join(parts, group, *device, sealed, known.joins(*device)).await?;
        }
        if let Some(record) = kept.link.filter(|record| record.device == *device) {
            take_link(parts, group, record, known.links(*device)).await?;
        }
    }
    Ok(())
}

async fn take_join(parts: &Parts, group: GroupId, device: DevEui, sealed: &Sealed, known: u32) -> Result<(), Error> {
    let record = open(parts, device, sealed)?;
    if record.version > known {
        let blob = serde_json::to_vec(sealed).map_err(form)?;
        keep(parts, group, &key(device), &blob, &bounds(&record)).await?;
    }
    if record.version >= known {
        note(parts, group, &record);
        parts.bridge.records(vec![record]).await?;
    }
    Ok(())
}

async fn take_link(parts: &Parts, group: GroupId, record: LinkRecord, known: u32) -> Result<(), Error> {
    if record.version > known {
        let blob = serde_json::to_vec(&record).map_err(form)?;
        keep(parts, group, &link_key(record.device), &blob, &[link_bound(&record)]).await?;
    }
    if record.version >= known {
        parts.bridge.link_records(vec![record]).await?;
    }
    Ok(())
}

/// What this node's disk has of devices' joins and links, for its own bridge after a restart.
pub(crate) async fn restore(parts: &Parts, group: GroupId, reserved: &Reserved) -> Result<(), Error> {
    for bound in reserved.bounds().filter(|bound| bound.session == JOINS) {
        let Some(sealed) = on_disk(parts, group, &key(bound.device)).await? else { continue };
        match open(parts, bound.device, &sealed) {
            Ok(record) => {
                note(parts, group, &record);
                parts.bridge.records(vec![record]).await?;
            }
            Err(error) => {
                tracing::error!(device = %bound.device, error = &error as &dyn std::error::Error, "a record does not open")
            }
        }
    }
    for bound in reserved.bounds().filter(|bound| bound.session == LINKS) {
        if let Some(record) = on_disk(parts, group, &link_key(bound.device)).await? {
            parts.bridge.link_records(vec![record]).await?;
        }
    }
    Ok(())
}

/// What this node keeps, for another member.
pub(crate) async fn view(parts: &Parts, group: GroupId) -> Result<RecordsView, Error> {
    let reserved = parts.core.store.list_reserved(group).await?;
    let recorded = reserved.bounds().filter(|bound| !is_session(bound.session)).map(|bound| bound.device);
    let mut sealed = Vec::new();
    for device in recorded.collect::<BTreeSet<_>>() {
        let blob = hex::encode(kept_bytes(parts, group, device).await?);
        sealed.push(SealedRecord { device, blob });
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
    let newer = |device: DevEui| theirs.joins(device) > own.joins(device) || theirs.links(device) > own.links(device);
    if !theirs.bounds().any(|bound| !is_session(bound.session) && newer(bound.device)) {
        return Ok(());
    }
    let client = parts.core.client.within(ANSWER_MAX);
    let view: RecordsView = client.get(member, &format!("/peer/v1/groups/{group}/records")).await?;
    let wanted: Vec<_> = view.sealed.into_iter().filter(|sealed| newer(sealed.device)).collect();
    take(parts, group, &wanted).await
}

/// Where the customer's devices listen, from the time before the contract; until the customer has answered once.
pub(crate) async fn fetch_links(parts: &Parts, group: GroupId, customer: NodeId) -> Result<(), Error> {
    let client = parts.core.client.within(ANSWER_MAX);
    let view: RecordsView = client.get(customer, &format!("/peer/v1/groups/{group}/records")).await?;
    for SealedRecord { device, blob } in view.sealed {
        let kept: Kept = serde_json::from_slice(&hex::decode(blob).map_err(form)?).map_err(form)?;
        let known = parts.core.store.list_reserved(group).await?;
        if let Some(record) = kept.link.filter(|record| record.device == device) {
            take_link(parts, group, record, known.links(device)).await?;
        }
    }
    Ok(())
}
