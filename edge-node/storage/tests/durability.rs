//! What is on disk: crashes, damage, limits, pins, garbage.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path, process::Command};

use bytes::Bytes;
use common::{GIB, TestStore, block_path, car_of, content, raw_cid, read_all};
use storage::{BlockStore, Error, FetchLimits, Limits};
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn what_a_crash_left_is_removed_and_the_rest_is_counted() {
    let test = TestStore::new().await;
    let bytes = content("crash", 700_000);
    let cid = test.store.add(&bytes[..], "image").await.unwrap();
    let usage = test.store.usage();
    let TestStore { store, directory } = test;
    drop(store);
    // A block that was being written, and a list of pins that was being replaced.
    fs::write(directory.path().join("tmp/7.tmp"), &bytes[..1000]).unwrap();
    fs::write(directory.path().join("tmp/pins.json"), "[{").unwrap();
    fs::write(directory.path().join("blocks/notes.txt"), "not a block").unwrap();
    let store = BlockStore::open(directory.path(), GIB).await.unwrap();
    assert_eq!(fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(store.usage(), usage);
    assert_eq!(store.pins().len(), 1);
    assert!(read_all(&store, &cid).await.unwrap() == bytes);
}

const CHILD_DIRECTORY: &str = "STORAGE_TEST_CHILD_DIRECTORY";

/// Not a test of its own: the process that [`a_process_killed_in_the_middle_leaves_only_whole_blocks`] kills.
#[tokio::test]
async fn child_that_adds_until_killed() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let store = BlockStore::open(Path::new(&directory), GIB).await.unwrap();
    for round in 0.. {
        store.add(&content(&format!("round {round}"), 3_000_000)[..], "image").await.unwrap();
    }
}

#[tokio::test]
async fn a_process_killed_in_the_middle_leaves_only_whole_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_adds_until_killed", "--exact", "--nocapture"])
        .env(CHILD_DIRECTORY, directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Killed while the second content is being written: the first is complete then.
    let (first, _) = (content("round 0", 3_000_000), ());
    let pins = directory.path().join("pins.json");
    while !pins.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let store = BlockStore::open(directory.path(), GIB).await.unwrap();
    let (mut blocks, mut bytes) = (0, 0);
    for shard in fs::read_dir(directory.path().join("blocks")).unwrap() {
        for file in fs::read_dir(shard.unwrap().path()).unwrap() {
            let file = file.unwrap();
            let block = fs::read(file.path()).unwrap();
            let digest = hex::encode(raw_cid(&block).hash().digest());
            assert_eq!(file.file_name().to_str().unwrap(), digest, "a block that is not what its name says");
            blocks += 1;
            bytes += block.len() as u64;
        }
    }
    assert_eq!((store.usage().blocks, store.usage().bytes), (blocks, bytes));
    let pin = store.pins().remove(0);
    assert!(read_all(&store, &pin.cid).await.unwrap() == first);
}

#[tokio::test]
async fn one_process_at_a_time() {
    let test = TestStore::new().await;
    assert!(matches!(BlockStore::open(test.directory.path(), GIB).await, Err(Error::Locked)));
}

#[tokio::test]
async fn a_damaged_list_of_pins_stops_the_start_rather_than_freeing_everything() {
    let TestStore { store, directory } = TestStore::new().await;
    store.add(&b"something"[..], "image").await.unwrap();
    drop(store);
    fs::write(directory.path().join("pins.json"), r#"[{"cid":"bafk"#).unwrap();
    assert!(matches!(BlockStore::open(directory.path(), GIB).await, Err(Error::Pins(_))));
}

#[tokio::test]
async fn a_changed_byte_on_disk_is_found_removed_and_fetched_again() {
    let (test, peer) = (TestStore::new().await, TestStore::new().await);
    let bytes = content("damage", 1_000_000);
    let cid = test.store.add(&bytes[..], "image").await.unwrap();
    peer.store.add(&bytes[..], "image").await.unwrap();
    let leaf = raw_cid(&bytes[262_144..524_288]);
    for damaged in [leaf, cid] {
        let path = test.block_path(&damaged);
        let mut block = fs::read(&path).unwrap();
        block[100] ^= 1;
        fs::write(&path, block).unwrap();
        let verification = test.store.verify(&cid).await.unwrap();
        assert_eq!((verification.corrupt, verification.missing), (vec![damaged], vec![]));
        assert_eq!(test.store.missing(&cid).await.unwrap(), [damaged]);
        assert!(matches!(test.store.get_block(&damaged).await, Err(Error::Missing(_))));
        assert!(matches!(test.store.total_bytes(&cid).await, Err(Error::Missing(missing)) if missing == damaged));
        let received = test.store.fetch(&peer.store, &cid, "image", FetchLimits::default(), &|_| {}).await.unwrap();
        assert_eq!(received.new_blocks, 1);
        assert!(read_all(&test.store, &cid).await.unwrap() == bytes);
    }
    // Found by a reader instead of by the check: an error that names it, and no wrong byte before.
    let path = test.block_path(&leaf);
    fs::write(&path, b"").unwrap();
    let error = read_all(&test.store, &cid).await.unwrap_err();
    assert!(error.to_string().contains(&leaf.to_string()), "{error}");
}

#[tokio::test]
async fn a_full_store_says_so_and_keeps_working() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlockStore::open(directory.path(), 1_000_000).await.unwrap();
    let error = store.add(&content("large", 1_500_000)[..], "large").await.unwrap_err();
    assert!(matches!(error, Error::Full { limit_bytes: 1_000_000, .. }), "{error}");
    assert!(store.usage().bytes <= 1_000_000);
    assert_eq!(store.pins(), []);
    store.collect_garbage().await.unwrap();
    assert_eq!((store.usage().blocks, store.usage().bytes), (0, 0));
    let bytes = content("small", 900_000);
    let cid = store.add(&bytes[..], "small").await.unwrap();
    assert!(read_all(&store, &cid).await.unwrap() == bytes);
    // The same again needs no room.
    assert_eq!(store.add(&bytes[..], "again").await.unwrap(), cid);
}

#[tokio::test]
async fn content_is_kept_until_its_last_pin_is_gone() {
    let test = TestStore::new().await;
    let shared = content("shared", 600_000);
    let cid = test.store.add(&shared[..], "contract_a").await.unwrap();
    test.store.pin(&cid, "contract_b").await.unwrap();
    let mut longer = shared.clone();
    longer.extend_from_slice(b"and a tail");
    let other = test.store.add(&longer[..], "contract_c").await.unwrap();
    assert!(test.store.unpin(&cid, "contract_a").await.unwrap());
    assert!(!test.store.unpin(&cid, "contract_a").await.unwrap());
    assert_eq!(test.store.collect_garbage().await.unwrap().blocks, 0);
    assert!(test.store.unpin(&cid, "contract_b").await.unwrap());
    let collected = test.store.collect_garbage().await.unwrap();
    // Its root and its last chunk; the other chunks belong to the longer content too.
    assert_eq!(collected.blocks, 2);
    assert!(!test.store.has(&cid).await.unwrap());
    assert!(read_all(&test.store, &other).await.unwrap() == longer);
    let directory = test.directory;
    drop(test.store);
    let store = BlockStore::open(directory.path(), GIB).await.unwrap();
    assert_eq!(store.pins().iter().map(|pin| pin.label.as_str()).collect::<Vec<_>>(), ["contract_c"]);
    assert!(matches!(store.pin(&cid, "").await, Err(Error::PinRefused(_))));
    assert!(matches!(store.pin(&cid, &"x".repeat(129)).await, Err(Error::PinRefused(_))));
    assert!(matches!(store.add(&b"x"[..], "").await, Err(Error::PinRefused(_))));
}

#[tokio::test]
async fn garbage_is_not_collected_under_a_writer() {
    let test = TestStore::new().await;
    let (mut sender, receiver) = tokio::io::duplex(1024);
    let store = test.store.clone();
    let adding = tokio::spawn(async move { store.add(receiver, "slow").await });
    // More than the pipe and a chunk hold: when this returns the writer is in the middle of its work.
    sender.write_all(&content("slow", 300_000)).await.unwrap();
    assert!(matches!(test.store.collect_garbage().await, Err(Error::Busy)));
    drop(sender);
    let cid = adding.await.unwrap().unwrap();
    assert_eq!(test.store.collect_garbage().await.unwrap().blocks, 0);
    assert_eq!(test.store.read(&cid).await.unwrap().bytes(), 300_000);
}

#[tokio::test]
async fn an_abandoned_add_leaves_no_temporary_file_and_no_reserved_room() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlockStore::open(directory.path(), 600_000).await.unwrap();
    for _ in 0..5 {
        let (mut sender, receiver) = tokio::io::duplex(1024);
        let writing = {
            let store = store.clone();
            tokio::spawn(async move { store.add(receiver, "abandoned").await })
        };
        sender.write_all(&content("abandoned", 300_000)).await.unwrap();
        writing.abort();
        assert!(writing.await.unwrap_err().is_cancelled());
    }
    // Room is given back as soon as the worker that held a chunk is done.
    let bytes = content("next", 550_000);
    let cid = loop {
        match store.add(&bytes[..], "next").await {
            Ok(cid) => break cid,
            Err(Error::Full { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(read_all(&store, &cid).await.unwrap() == bytes);
    assert_eq!(fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn many_writers_of_the_same_content_store_it_once() {
    let test = TestStore::new().await;
    let bytes = content("same", 2_000_000);
    let car = {
        let peer = TestStore::new().await;
        let cid = peer.store.add(&bytes[..], "image").await.unwrap();
        (cid, car_of(&peer.store, &cid).await)
    };
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..6 {
        let (store, bytes, car) = (test.store.clone(), bytes.clone(), car.clone());
        tasks.spawn(async move {
            if writer % 2 == 0 {
                store.add(&bytes[..], "added").await.unwrap()
            } else {
                store.import_car(&car.1[..], &car.0, "imported", Limits::default()).await.unwrap();
                car.0
            }
        });
    }
    while let Some(cid) = tasks.join_next().await {
        assert_eq!(cid.unwrap(), car.0);
    }
    assert_eq!(test.store.usage().blocks, 9);
    assert_eq!(test.store.usage().bytes, test.store.total_bytes(&car.0).await.unwrap());
    assert_eq!(fs::read_dir(test.directory.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_readiness_answer_depends_on_every_byte_and_on_the_nonce() {
    let (test, peer) = (TestStore::new().await, TestStore::new().await);
    let (image, config) = (content("image", 800_000), content("config", 5_000));
    let mut cids = Vec::new();
    for bytes in [&image, &config] {
        cids.push(test.store.add(&bytes[..], "ready").await.unwrap());
        peer.store.add(&bytes[..], "ready").await.unwrap();
    }
    let nonce = [7; 32];
    let answer = test.store.keyed_hash(&nonce, &cids).await.unwrap();
    assert_eq!(answer, expected_answer(&nonce, &image, &config, cids[0]));
    assert_eq!(peer.store.keyed_hash(&nonce, &[cids[1], cids[0], cids[1]]).await.unwrap(), answer);
    assert_ne!(test.store.keyed_hash(&[8; 32], &cids).await.unwrap(), answer);
    assert_ne!(test.store.keyed_hash(&nonce, &cids[..1]).await.unwrap(), answer);
    let leaf = raw_cid(&image[..262_144]);
    let path = block_path(test.directory.path(), &leaf);
    let mut block = fs::read(&path).unwrap();
    block[0] ^= 1;
    fs::write(&path, block).unwrap();
    assert!(matches!(test.store.keyed_hash(&nonce, &cids).await, Err(Error::Corrupt(cid)) if cid == leaf));
    assert!(matches!(test.store.keyed_hash(&nonce, &cids).await, Err(Error::Missing(cid)) if cid == leaf));
    test.store.put_block(&leaf, Bytes::copy_from_slice(&image[..262_144])).await.unwrap();
    assert_eq!(test.store.keyed_hash(&nonce, &cids).await.unwrap(), answer);
}

/// The documented definition, computed without the store.
fn expected_answer(nonce: &[u8; 32], image: &[u8], config: &[u8], image_root: storage::Cid) -> [u8; 32] {
    use sha2::{Digest as _, Sha256};
    let mut blocks: Vec<(storage::Cid, Vec<u8>)> = image.chunks(262_144).map(|chunk| (raw_cid(chunk), chunk.to_vec())).collect();
    blocks.push((raw_cid(config), config.to_vec()));
    let mut adder = rust_unixfs::file::adder::FileAdder::default();
    let mut rest = image;
    while !rest.is_empty() {
        rest = &rest[adder.push(rest).1..];
    }
    let root = adder.finish().last().unwrap();
    assert_eq!(root.0, image_root);
    blocks.push(root);
    blocks.sort_by_key(|(cid, _)| {
        let rank: [u8; 32] = Sha256::digest([&nonce[..], &cid.to_bytes()].concat()).into();
        rank
    });
    let mut input = b"antirio readiness v1\0".to_vec();
    input.extend_from_slice(nonce);
    input.extend_from_slice(&(blocks.len() as u64).to_be_bytes());
    for (cid, block) in blocks {
        input.extend_from_slice(&cid.to_bytes());
        input.extend_from_slice(&(block.len() as u64).to_be_bytes());
        input.extend_from_slice(&block);
    }
    Sha256::digest(input).into()
}
