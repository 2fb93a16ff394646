//! Results of joins on the disks of a majority before the accept leaves, changes of receive windows before they are asked for, and what a
//! new holder makes of them.
//!
//! The record of a join is sealed to both parties: the witness keeps what it cannot read. Where a device listens is no secret. Versions
//! stand among the bounds that go with every vote, so whoever takes over knows whether it lacks one, and fetches it from the member that
//! voted. A member keeps one blob per device, so each write names the newest of both kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use contracts::contract::Contract;
use contracts::ids::{DevEui, Epoch, GroupId, NodeId};
use contracts::node_record::SealingKey;
use contracts::sealed::{Sealed, UnsealingKey};
use contracts::write_ahead::{Bound, JOINS, LINKS, RecordsPage, RecordsView, RecordsWrite, Reserved, SealedRecord, is_session};
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
}

const fn link_bound(record: &LinkRecord) -> Bound {
    Bound { device: record.device, session: LINKS, upto: record.version }
}

fn sealed(parts: &Parts, group: GroupId, record: &DeviceRecord) -> Result<Sealed, Error> {
    let json = serde_json::to_vec(record).map_err(form)?;
    Sealed::seal(&json, &recipients(parts, group), PURPOSE).map_err(form)
}

/// All that this node's disk has of a device, as members keep it.
async fn kept_bytes(parts: &Parts, group: GroupId, device: DevEui) -> Result<Vec<u8>, Error> {
    let (join, link) = (on_disk::<Sealed>(parts, group, &key(device)).await?, on_disk(parts, group, &link_key(device)).await?);
    let join = join.map(|sealed| address_to(sealed, &recipients(parts, group), &parts.core.identity.unsealing)).transpose()?;
    serde_json::to_vec(&Kept { join, link }).map_err(form)
}

/// The same record for all who may hold now: one from before the contract was sealed to its customer alone. One that this node cannot open
/// stays as it is. Pure but for the randomness of the seal.
fn address_to(sealed: Sealed, recipients: &[SealingKey], own: &UnsealingKey) -> Result<Sealed, Error> {
    if recipients.iter().all(|key| sealed.recipients.iter().any(|copy| copy.key == *key)) {
        return Ok(sealed);
    }
    match own.open(&sealed, PURPOSE) {
        Ok(json) => Sealed::seal(&json, recipients, PURPOSE).map_err(form),
        Err(_) => Ok(sealed),
    }
}

async fn on_disk<T: serde::de::DeserializeOwned>(parts: &Parts, group: GroupId, key: &str) -> Result<Option<T>, Error> {
    parts.core.store.get_own(group, key).await?.transpose().map_err(form)
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
    let bounds = match record {
        Record::Join(record) => {
            put(parts, group, &key(device), &sealed(parts, group, record)?).await?;
            bounds(record)
        }
        Record::Link(record) => {
            put(parts, group, &link_key(device), record).await?;
            vec![link_bound(record)]
        }
    };
    raise(parts, group, &bounds).await?;
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

/// Comes before its bound: a bound on disk says that the record is there.
async fn put(parts: &Parts, group: GroupId, key: &str, record: &(impl Serialize + Sync)) -> Result<(), Error> {
    Ok(parts.core.store.put_own(group, key, record).await?)
}

async fn raise(parts: &Parts, group: GroupId, bounds: &[Bound]) -> Result<(), Error> {
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

/// Takes records of another member: on disk first, then to the bridge. Older ones than those that are here change nothing. Returns how many
/// cannot be read; the others are taken.
///
/// # Errors
/// The disk failed, or the bridge has stopped.
pub(crate) async fn take(parts: &Parts, group: GroupId, records: &[SealedRecord]) -> Result<usize, Error> {
    if records.is_empty() {
        return Ok(0);
    }
    let known = parts.core.store.list_reserved(group).await?;
    let (mut joins, mut links, mut unread) = (Vec::new(), Vec::new(), 0);
    for record in records {
        let device = record.device;
        let read = read(record).and_then(|Kept { join, link }| {
            links.extend(link.filter(|link| link.device == device && link.version >= known.links(device)));
            join.map(|sealed| Ok((open(parts, device, &sealed)?, sealed))).transpose()
        });
        match read {
            Ok(join) => joins.extend(join.filter(|(join, _)| join.version >= known.joins(device))),
            Err(error) => {
                unread += 1;
                tracing::warn!(%device, error = &error as &dyn std::error::Error, "a record of another member cannot be read");
            }
        }
    }
    let mut news = Vec::new();
    for (record, sealed) in joins.iter().filter(|(join, _)| join.version > known.joins(join.device)) {
        put(parts, group, &key(record.device), sealed).await?;
        news.extend(bounds(record));
    }
    for record in links.iter().filter(|link| link.version > known.links(link.device)) {
        put(parts, group, &link_key(record.device), record).await?;
        news.push(link_bound(record));
    }
    raise(parts, group, &news).await?;
    joins.iter().for_each(|(record, _)| note(parts, group, record));
    give(parts, joins.into_iter().map(|(record, _)| record).collect(), links).await?;
    Ok(unread)
}

fn read(record: &SealedRecord) -> Result<Kept, Error> {
    serde_json::from_slice(&hex::decode(&record.blob).map_err(form)?).map_err(form)
}

/// To the bridge.
async fn give(parts: &Parts, joins: Vec<DeviceRecord>, links: Vec<LinkRecord>) -> Result<(), Error> {
    if !joins.is_empty() {
        parts.bridge.records(joins).await?;
    }
    if !links.is_empty() {
        parts.bridge.link_records(links).await?;
    }
    Ok(())
}

/// What this node's disk has of devices' joins and links, for its own bridge after a restart.
pub(crate) async fn restore(parts: &Parts, group: GroupId, reserved: &Reserved) -> Result<(), Error> {
    let (mut joins, mut links) = (Vec::new(), Vec::new());
    for bound in reserved.bounds().filter(|bound| bound.session == JOINS) {
        let Some(sealed) = on_disk(parts, group, &key(bound.device)).await? else { continue };
        match open(parts, bound.device, &sealed) {
            Ok(record) => {
                note(parts, group, &record);
                joins.push(record);
            }
            Err(error) => {
                tracing::error!(device = %bound.device, error = &error as &dyn std::error::Error, "a device's record is lost");
            }
        }
    }
    for bound in reserved.bounds().filter(|bound| bound.session == LINKS) {
        links.extend(on_disk(parts, group, &link_key(bound.device)).await?);
    }
    give(parts, joins, links).await
}

/// A page of what this node keeps, for another member: devices behind `after`, in order.
pub(crate) async fn view(parts: &Parts, group: GroupId, after: Option<DevEui>) -> Result<RecordsView, Error> {
    let reserved = parts.core.store.list_reserved(group).await?;
    let recorded = reserved.bounds().filter(|bound| !is_session(bound.session) && Some(bound.device) > after);
    let mut page = RecordsPage::default();
    for device in recorded.map(|bound| bound.device).collect::<BTreeSet<_>>() {
        let blob = hex::encode(kept_bytes(parts, group, device).await?);
        if !page.add(SealedRecord { device, blob }) {
            break;
        }
    }
    Ok(page.finish(reserved.bounds(), after))
}

/// Fetches records from the other members whenever the bridge misses some, until the link is closed. A member that is away is asked again
/// when something is missed again.
pub async fn follow(parts: Parts, group: GroupId, members: Vec<NodeId>, mut missing: watch::Receiver<u64>) {
    while missing.changed().await.is_ok() {
        for member in members.iter().filter(|member| **member != parts.core.me()) {
            if let Err(error) = pull(&parts, group, *member).await {
                tracing::debug!(%member, error = &error as &dyn std::error::Error, "records cannot be fetched now");
            }
        }
    }
}

/// Fetches from a member what it knows and this node's disk lacks, page by page; gives the versions that it has.
///
/// # Errors
/// The member does not answer, or the disk failed; what came before was taken.
pub async fn pull(parts: &Parts, group: GroupId, member: NodeId) -> Result<Reserved, Error> {
    let client = parts.core.client.within(ANSWER_MAX);
    let path = format!("/peer/v1/groups/{group}/records");
    let mut after: Option<DevEui> = None;
    let mut all = Reserved::default();
    loop {
        let query = after.map_or_else(String::new, |device| format!("?after={device}"));
        let page: RecordsView = client.get(member, &format!("{path}{query}")).await?;
        let own = parts.core.store.list_reserved(group).await?;
        let mut theirs = Reserved::default();
        theirs.raise_all(&page.bounds);
        let wanted: Vec<_> = page.sealed.into_iter().filter(|record| theirs.is_newer(&own, record.device)).collect();
        take(parts, group, &wanted).await?;
        all.merge(&theirs);
        if page.next <= after {
            return Ok(all);
        }
        after = page.next;
    }
}

/// Fetches what came with votes and is not known here, before this node serves. Each record is on the disks of a majority: that the member that
/// voted has gone is no reason not to serve, if another has it. Nor is a record that a member gave and that was not sealed to this node.
///
/// A vote may name a record that never counted: one on its way to a disk that refused it, or one of a holder whose write reached nobody. What a
/// member does not have when it is asked was not on its disk when it voted, and since then it takes nothing of holders before. So the
/// votes are given back without what their member does not have, or a majority does not.
///
/// # Errors
/// Something is still missing, and of the members that may have it too few answered to tell that it never counted.
pub(crate) async fn fetch(
    parts: &Parts,
    contract: &Contract,
    mut votes: BTreeMap<NodeId, Reserved>,
) -> Result<BTreeMap<NodeId, Reserved>, Error> {
    let (group, members) = (contract.group, contract.members());
    let others = members.iter().copied().filter(|member| *member != parts.core.me() && !votes.contains_key(member));
    let asked: Vec<NodeId> = votes.keys().copied().chain(others).collect();
    let (mut answers, mut unanswered) = (Vec::new(), None);
    for member in asked {
        if !has_news(&votes, &parts.core.store.list_reserved(group).await?) {
            return Ok(votes);
        }
        match pull(parts, group, member).await {
            Ok(theirs) => {
                if let Some(vote) = votes.get_mut(&member) {
                    vote.limit_to(&theirs);
                }
                answers.push(theirs);
            }
            Err(error) => {
                tracing::info!(%group, %member, error = &error as &dyn std::error::Error, "records are looked for elsewhere");
                unanswered = Some(error);
            }
        }
    }
    let mut given = parts.core.store.list_reserved(group).await?;
    answers.iter().for_each(|theirs| given.merge(theirs));
    let is_majority = answers.len() + 1 > members.len() / 2;
    match unanswered {
        Some(error) if !is_majority && has_news(&votes, &given) => Err(error),
        _ => {
            votes.values_mut().for_each(|vote| vote.limit_to(&given));
            Ok(votes)
        }
    }
}

fn has_news(votes: &BTreeMap<NodeId, Reserved>, known: &Reserved) -> bool {
    votes.values().any(|theirs| theirs.bounds().any(|bound| theirs.is_newer(known, bound.device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_from_before_the_contract_is_for_the_insurer_too() {
        let [customer, insurer, stranger] = [1, 2, 3].map(|n| UnsealingKey::derive(&[n; 32]));
        let before = Sealed::seal(b"a session", &[customer.public()], PURPOSE).expect("small");
        let parties = [customer.public(), insurer.public()];
        let now = address_to(before.clone(), &parties, &customer).expect("sealed");
        for party in [&customer, &insurer] {
            assert_eq!(party.open(&now, PURPOSE).as_deref(), Ok(b"a session".as_slice()));
        }
        assert!(stranger.open(&now, PURPOSE).is_err());
        assert_eq!(address_to(now.clone(), &parties, &customer).expect("as it is"), now);
        assert_eq!(address_to(before.clone(), &parties, &stranger).expect("as it is"), before);
    }
}
