//! CARs and fetching, from honest, broken and lying peers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use common::{TestStore, car_of, content, raw_cid, read_all, write_car};
use futures_util::StreamExt as _;
use storage::{BLOCK_BYTES_MAX, BlockSource, BlockStore, CarStream, Cid, Error, FetchLimits, Limits, Progress, SourceError};

async fn import(car: &[u8], root: &Cid) -> (TestStore, Result<storage::Received, Error>) {
    let test = TestStore::new().await;
    let result = test.store.import_car(car, root, "image", Limits::default()).await;
    (test, result)
}

/// Content of three chunks below one node, with its blocks in depth-first order.
async fn sample() -> (Vec<u8>, Cid, Vec<(Cid, Bytes)>, Vec<u8>) {
    let bytes = content("sample", 600_000);
    let test = TestStore::new().await;
    let root = test.store.add(&bytes[..], "image").await.unwrap();
    let mut blocks = vec![(root, test.store.get_block(&root).await.unwrap())];
    blocks.extend(bytes.chunks(262_144).map(|chunk| (raw_cid(chunk), Bytes::copy_from_slice(chunk))));
    let car = car_of(&test.store, &root).await;
    (bytes, root, blocks, car)
}

#[tokio::test]
async fn an_exported_car_is_what_another_writer_makes_and_imports() {
    let (bytes, root, blocks, car) = sample().await;
    assert!(car == write_car(root, &blocks).await);
    let (test, received) = import(&car, &root).await;
    let received = received.unwrap();
    assert_eq!((received.new_blocks, received.new_bytes), (4, test.store.usage().bytes));
    assert!(read_all(&test.store, &root).await.unwrap() == bytes);
    assert_eq!(test.store.pins().len(), 1);
    let again = test.store.import_car(&car[..], &root, "image", Limits::default()).await.unwrap();
    assert_eq!((again.new_blocks, again.new_bytes, again.wire_bytes), (0, 0, received.wire_bytes));
}

#[tokio::test]
async fn a_stream_cut_anywhere_is_named_and_the_next_attempt_needs_only_the_rest() {
    let (bytes, root, blocks, car) = sample().await;
    // Through the header, the root and the beginning of the first chunk; within chunks; before the last byte.
    for cut in (0..300).step_by(13).chain([58, 59, 60, 262_000, 262_500, 300_000, car.len() - 1]) {
        let (test, result) = import(&car[..cut], &root).await;
        assert!(matches!(result, Err(Error::Truncated { missing }) if missing > 0), "cut at {cut}: {result:?}");
        assert_eq!(test.store.pins(), [], "cut at {cut}");
        let kept = test.store.usage().blocks;
        let received = test.store.import_car(&car[..], &root, "image", Limits::default()).await.unwrap();
        assert_eq!(received.new_blocks, 4 - kept);
        // The rest alone is enough too.
        let (test, _) = import(&car[..cut], &root).await;
        let kept = test.store.missing(&root).await.unwrap();
        let rest: Vec<_> = blocks.iter().filter(|(cid, _)| kept.contains(&root) || kept.contains(cid)).cloned().collect();
        test.store.import_car(&write_car(root, &rest).await[..], &root, "image", Limits::default()).await.unwrap();
        assert!(read_all(&test.store, &root).await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn forged_streams_are_refused_by_name_and_leave_nothing_wrong() {
    let (_, root, blocks, car) = sample().await;
    let stranger = (raw_cid(b"stranger"), Bytes::from_static(b"stranger"));
    let mut changed = blocks.clone();
    changed[2].1 = Bytes::from([&[changed[2].1[0] ^ 1], &changed[2].1[1..]].concat());
    let swapped = vec![blocks[0].clone(), (blocks[1].0, blocks[2].1.clone())];
    let leaves_first: Vec<_> = blocks.iter().rev().cloned().collect();
    let with_stranger = vec![blocks[0].clone(), stranger.clone(), blocks[1].clone()];
    type Case = (&'static str, Vec<u8>, fn(&Error) -> bool);
    let cases: Vec<Case> = vec![
        ("changed byte", write_car(root, &changed).await, |error| matches!(error, Error::HashMismatch(_))),
        ("another block under the id", write_car(root, &swapped).await, |error| matches!(error, Error::HashMismatch(_))),
        ("children before parents", write_car(root, &leaves_first).await, |error| matches!(error, Error::Unexpected(_))),
        ("a block of something else", write_car(root, &with_stranger).await, |error| matches!(error, Error::Unexpected(_))),
        ("another root", write_car(stranger.0, &blocks).await, |error| matches!(error, Error::CarRoot(_))),
        ("no CAR", b"\x0aGET / HTTP/1.1\r\n".to_vec(), |error| matches!(error, Error::CarHeader(_))),
        ("a huge header", vec![0xff, 0xff, 0x7f, 0], |error| matches!(error, Error::CarHeader(_))),
        ("nothing", Vec::new(), |error| matches!(error, Error::Truncated { .. })),
        ("a huge frame", [&car[..59], &[0xff, 0xff, 0xff, 0x0f]].concat(), |error| matches!(error, Error::BlockTooLarge { .. })),
        ("an endless length", [&car[..59], &[0xff; 12]].concat(), |error| matches!(error, Error::CarFrame(_))),
        ("a frame without a CID", [&car[..59], &[3, 9, 9, 9]].concat(), |error| matches!(error, Error::CarFrame(_))),
        ("an empty frame", [&car[..59], &[0]].concat(), |error| matches!(error, Error::CarFrame(_))),
    ];
    for (name, car, expected) in cases {
        let (test, result) = import(&car, &root).await;
        let error = result.expect_err(name);
        assert!(expected(&error), "{name}: {error:?}");
        assert_eq!(test.store.pins(), [], "{name}");
        assert!(!test.store.has(&stranger.0).await.unwrap(), "{name}");
        // Whatever was kept is right: the true content completes it.
        test.store.import_car(&write_car(root, &blocks).await[..], &root, "image", Limits::default()).await.unwrap();
        assert!(test.store.verify(&root).await.unwrap().is_complete(), "{name}");
        assert_eq!(test.store.usage().blocks, 4, "{name}");
    }
}

#[tokio::test]
async fn sizes_are_bounded() {
    let (_, root, _, car) = sample().await;
    for limits in [Limits { bytes_max: 599_999, blocks_max: 100 }, Limits { bytes_max: 10_000_000, blocks_max: 3 }] {
        let test = TestStore::new().await;
        let error = test.store.import_car(&car[..], &root, "image", limits).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
        assert!(test.store.usage().blocks <= 1, "refused by what the root announces, before the chunks");
    }
    let oversized = Bytes::from(vec![0; BLOCK_BYTES_MAX + 1]);
    let test = TestStore::new().await;
    let error = test.store.put_block(&raw_cid(&oversized), oversized).await.unwrap_err();
    assert!(matches!(error, Error::BlockTooLarge { .. }));
}

/// A dag-pb file node with one link, as a liar would write it.
fn node(child: &Cid, announced: u8, size: u8) -> (Cid, Bytes) {
    use multihash_codetable::MultihashDigest as _;
    let id = child.to_bytes();
    let mut block = vec![0x12, 2 + 36 + 2, 0x0a, 36];
    block.extend_from_slice(&id);
    block.extend_from_slice(&[0x18, size, 0x0a, 6, 0x08, 2, 0x18, announced, 0x20, size]);
    (Cid::new_v1(0x70, multihash_codetable::Code::Sha2_256.digest(&block)), Bytes::from(block))
}

#[tokio::test]
async fn nodes_whose_sizes_lie_or_that_go_too_deep_are_refused() {
    let leaf = (raw_cid(b"twelve bytes"), Bytes::from_static(b"twelve bytes"));
    let honest = node(&leaf.0, 12, 12);
    let (test, result) = import(&write_car(honest.0, &[honest.clone(), leaf.clone()]).await, &honest.0).await;
    result.unwrap();
    assert_eq!(read_all(&test.store, &honest.0).await.unwrap(), b"twelve bytes");
    let sum = node(&leaf.0, 13, 12);
    let (_, result) = import(&write_car(sum.0, &[sum.clone(), leaf.clone()]).await, &sum.0).await;
    assert!(matches!(result, Err(Error::Malformed { .. })), "{result:?}");
    let size = node(&leaf.0, 13, 13);
    let (test, result) = import(&write_car(size.0, &[size.clone(), leaf.clone()]).await, &size.0).await;
    result.unwrap();
    assert!(read_all(&test.store, &size.0).await.unwrap_err().to_string().contains("announced"));
    let mut chain = vec![leaf.clone()];
    for _ in 0..20 {
        chain.push(node(&chain.last().unwrap().0, 12, 12));
    }
    chain.reverse();
    let (test, result) = import(&write_car(chain[0].0, &chain).await, &chain[0].0).await;
    assert!(matches!(result, Err(Error::TooDeep(_))), "{result:?}");
    assert_eq!(test.store.pins(), []);
    test.store.pin(&chain[0].0, "too deep").await.unwrap();
    assert!(matches!(test.store.missing(&chain[0].0).await, Err(Error::TooDeep(_))));
    test.store.collect_garbage().await.unwrap();
}

/// A peer that misbehaves as told and counts what it was asked for.
struct Peer {
    store: BlockStore,
    car: Behaviour,
    block: Behaviour,
    asked_blocks: Mutex<BTreeSet<Cid>>,
    asked_cars: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Honest,
    Absent,
    Silent,
    /// Breaks off after so many pieces.
    Breaks(usize),
    Lies,
}

impl Peer {
    fn new(store: &TestStore, car: Behaviour, block: Behaviour) -> Self {
        let (asked_blocks, asked_cars) = (Mutex::default(), AtomicUsize::new(0));
        Peer { store: store.store.clone(), car, block, asked_blocks, asked_cars }
    }
}

#[async_trait]
impl BlockSource for Peer {
    async fn block(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        self.asked_blocks.lock().unwrap().insert(*cid);
        match self.block {
            Behaviour::Honest => self.store.block(cid).await,
            Behaviour::Absent | Behaviour::Breaks(_) => Err(SourceError::NotFound),
            Behaviour::Silent => std::future::pending().await,
            Behaviour::Lies => Ok(Bytes::from_static(b"something else")),
        }
    }

    async fn car(&self, root: &Cid) -> Result<CarStream, SourceError> {
        self.asked_cars.fetch_add(1, Ordering::Relaxed);
        let stream = self.store.car(root).await?;
        match self.car {
            Behaviour::Honest => Ok(stream),
            Behaviour::Absent => Err(SourceError::NotFound),
            Behaviour::Silent => Ok(stream.take(2).chain(futures_util::stream::pending()).boxed()),
            Behaviour::Breaks(pieces) => {
                let broken = futures_util::stream::once(async { Err(Error::Stream(std::io::ErrorKind::ConnectionReset.into())) });
                Ok(stream.take(pieces).chain(broken).boxed())
            }
            Behaviour::Lies => Ok(stream.map(|piece| piece.map(|piece| Bytes::from(vec![7; piece.len()]))).boxed()),
        }
    }
}

/// Long for peers that answer, so that a busy machine does not look like a silent peer; short for those that do not.
fn limits(peer: &Peer) -> FetchLimits {
    let silent = peer.car == Behaviour::Silent || peer.block == Behaviour::Silent;
    let silence_max = if silent { Duration::from_millis(1500) } else { Duration::from_secs(30) };
    FetchLimits { content: Limits { bytes_max: 100_000_000, blocks_max: 1000 }, silence_max }
}

#[tokio::test]
async fn a_fetch_ends_with_the_content_however_the_peer_gives_it() {
    let source = TestStore::new().await;
    let bytes = content("fetch", 3_000_000);
    let root = source.store.add(&bytes[..], "image").await.unwrap();
    use Behaviour::{Absent, Breaks, Honest, Silent};
    for (car, asked) in [(Honest, 0), (Absent, 13), (Breaks(0), 13), (Breaks(1), 13), (Breaks(5), 9), (Silent, 12)] {
        let (test, peer) = (TestStore::new().await, Peer::new(&source, car, Honest));
        let seen = Mutex::new(Vec::<Progress>::new());
        let progress = |progress| seen.lock().unwrap().push(progress);
        let received = test.store.fetch(&peer, &root, "image", limits(&peer), &progress).await.unwrap();
        assert_eq!(received.new_blocks, 13);
        assert_eq!(peer.asked_blocks.lock().unwrap().len(), asked);
        assert!(read_all(&test.store, &root).await.unwrap() == bytes);
        let seen = seen.into_inner().unwrap();
        assert!(seen.is_sorted_by_key(|progress| (progress.blocks, progress.bytes)));
        let last = seen.last().unwrap();
        assert_eq!((last.blocks, last.blocks_known, last.bytes), (13, 13, received.new_bytes));
        assert_eq!(last.bytes_total, Some(received.new_bytes));
        // A second fetch asks nobody for anything.
        let peer = Peer::new(&source, Honest, Honest);
        assert_eq!(test.store.fetch(&peer, &root, "image", limits(&peer), &|_| {}).await.unwrap().wire_bytes, 0);
        assert_eq!((peer.asked_cars.into_inner(), peer.asked_blocks.lock().unwrap().len()), (0, 0));
    }
}

#[tokio::test]
async fn a_failed_fetch_survives_restart_and_garbage_collection_and_goes_on() {
    let (source, test) = (TestStore::new().await, TestStore::new().await);
    let bytes = content("resume", 3_000_000);
    let root = source.store.add(&bytes[..], "image").await.unwrap();
    let peer = Peer::new(&source, Behaviour::Breaks(6), Behaviour::Absent);
    let error = test.store.fetch(&peer, &root, "image", limits(&peer), &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Source { source: SourceError::NotFound, .. }) && error.is_transient(), "{error:?}");
    let TestStore { store, directory } = test;
    drop(store);
    let store = BlockStore::open(directory.path(), common::GIB).await.unwrap();
    assert_eq!(store.collect_garbage().await.unwrap().blocks, 0);
    assert_eq!(store.usage().blocks, 5);
    let peer = Peer::new(&source, Behaviour::Honest, Behaviour::Honest);
    let received = store.fetch(&peer, &root, "image", limits(&peer), &|_| {}).await.unwrap();
    assert_eq!((received.new_blocks, peer.asked_cars.into_inner()), (8, 0));
    assert!(read_all(&store, &root).await.unwrap() == bytes);
    let fresh = TestStore::new().await;
    let peer = Peer::new(&source, Behaviour::Breaks(3), Behaviour::Silent);
    let error = fresh.store.fetch(&peer, &root, "image", limits(&peer), &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Stalled(_)) && error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn a_lying_peer_is_named_and_nothing_of_it_is_kept() {
    let source = TestStore::new().await;
    let bytes = content("lies", 3_000_000);
    let root = source.store.add(&bytes[..], "image").await.unwrap();
    let test = TestStore::new().await;
    let peer = Peer::new(&source, Behaviour::Absent, Behaviour::Lies);
    let error = test.store.fetch(&peer, &root, "image", limits(&peer), &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::HashMismatch(cid) if cid == root) && !error.is_transient(), "{error:?}");
    let peer = Peer::new(&source, Behaviour::Lies, Behaviour::Honest);
    let error = test.store.fetch(&peer, &root, "image", limits(&peer), &|_| {}).await.unwrap_err();
    assert!(!error.is_transient(), "{error:?}");
    assert_eq!(test.store.usage().blocks, 0);
}

#[tokio::test]
async fn missing_content_below_an_absent_node_is_fetched_as_it_becomes_known() {
    // 175 chunks: a root, two nodes, chunks.
    let source = TestStore::new().await;
    let bytes = content("levels", 174 * 262_144 + 5);
    let root = source.store.add(&bytes[..], "image").await.unwrap();
    let test = TestStore::new().await;
    test.store.put_block(&root, source.store.get_block(&root).await.unwrap()).await.unwrap();
    assert_eq!(test.store.missing(&root).await.unwrap().len(), 2);
    let peer = Peer::new(&source, Behaviour::Absent, Behaviour::Honest);
    let received = test.store.fetch(&peer, &root, "image", FetchLimits::default(), &|_| {}).await.unwrap();
    assert_eq!(received.new_blocks, 177);
    assert!(test.store.verify(&root).await.unwrap().is_complete());
}
