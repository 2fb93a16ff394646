//! The ids are those of other implementations. The constants were computed with `ipfs-unixfs-importer` (JavaScript, the importer of
//! helia) with chunker `fixedSize(262144)`, layout `balanced(174)`, raw leaves; they are also what Kubo gives.
mod common;

use bytes::Bytes;
use common::{TestStore, car_of, content, read_all, write_car};
use storage::{CHUNK_BYTES, Error, Limits, parse_cid};

/// Length of the content made from the seed "antirio", its id, number of different blocks.
const VECTORS: [(usize, &str, u64); 8] = [
    (0, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", 1),
    (1, "bafkreifjeu64quu52ikol4rds6ei46gtheg2ur2zhytpnday7f75pi4hnm", 1),
    (CHUNK_BYTES - 1, "bafkreiavv67jz6xq6x3gpwh64qipszv6r5ujf7nb5b4ofqb7jpjl75kety", 1),
    (CHUNK_BYTES, "bafkreifnkqjmstfaiyh6d2xremudj7veslg3qfobopxrfcpe5bq5wrcdxi", 1),
    (CHUNK_BYTES + 1, "bafybeibsmqkpzvlmmuzy5t6unulu5x5il5z7i5gu6c5lke723lnkihvega", 3),
    (5 * 1024 * 1024, "bafybeifzxl47wwnteftkspmivhhzvqreq2gcnmvgh7fthagd6j6aiq2fju", 21),
    (174 * CHUNK_BYTES, "bafybeihv3a3vmmc6xmvy44od544yz3xzmh3eebjo7qtforlos2nvhnao34", 175),
    (174 * CHUNK_BYTES + 1, "bafybeiehmbfkhhvuqr3layd7l6ajstqly5kn23xqcgyo245k4luhnjqb2i", 178),
];

#[tokio::test]
async fn content_gets_the_ids_of_other_implementations_and_reads_back() {
    for (length, expected, blocks) in VECTORS {
        let test = TestStore::new().await;
        let bytes = content("antirio", length);
        let cid = test.store.add(&bytes[..], "golden").await.unwrap();
        assert_eq!(cid.to_string(), expected, "{length} bytes");
        assert_eq!(test.store.usage().blocks, blocks, "{length} bytes");
        assert_eq!(test.store.total_bytes(&cid).await.unwrap(), test.store.usage().bytes);
        assert_eq!(test.store.missing(&cid).await.unwrap(), []);
        assert_eq!(test.store.read(&cid).await.unwrap().bytes(), length as u64);
        assert!(read_all(&test.store, &cid).await.unwrap() == bytes, "{length} bytes read back differ");
        let verification = test.store.verify(&cid).await.unwrap();
        assert!(verification.is_complete());
        assert_eq!((verification.blocks, verification.bytes), (blocks, test.store.usage().bytes));
    }
}

#[tokio::test]
async fn the_id_does_not_depend_on_how_the_bytes_arrive() {
    let (length, expected, _) = VECTORS[5];
    let bytes = content("antirio", length);
    let test = TestStore::new().await;
    let pieces: Vec<std::io::Result<Bytes>> = bytes.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let reader = tokio_util::io::StreamReader::new(futures_util::stream::iter(pieces));
    assert_eq!(test.store.add(reader, "golden").await.unwrap().to_string(), expected);
}

#[tokio::test]
async fn repeated_chunks_are_stored_once() {
    let test = TestStore::new().await;
    let zeros = vec![0; 1_048_576];
    let cid = test.store.add(&zeros[..], "golden").await.unwrap();
    assert_eq!(cid.to_string(), "bafybeiggzq4ryi7hscq5hzvzcnk4urnxt3asp37dhgvnjilf7exskximla");
    assert_eq!(test.store.usage().blocks, 2);
    assert!(read_all(&test.store, &cid).await.unwrap() == zeros);
    let other = TestStore::new().await;
    other.store.import_car(&car_of(&test.store, &cid).await[..], &cid, "golden", Limits::default()).await.unwrap();
    assert!(read_all(&other.store, &cid).await.unwrap() == zeros);
}

/// Content of older nodes: version 0, leaves wrapped in dag-pb.
#[tokio::test]
async fn content_of_version_0_is_taken_and_read() {
    let bytes = content("antirio", 600_000);
    let (root, blocks) = version_0(&bytes);
    assert_eq!(root.to_string(), "QmVP5GPMHjQ1YpVJsz4BQNiFvJFaFh7poPncWUBwpcKSVM");
    let test = TestStore::new().await;
    test.store.import_car(&write_car(root, &blocks).await[..], &root, "old", Limits::default()).await.unwrap();
    assert!(read_all(&test.store, &root).await.unwrap() == bytes);
    assert!(test.store.has(&root).await.unwrap());
    assert!(test.store.verify(&root).await.unwrap().is_complete());
}

fn version_0(bytes: &[u8]) -> (storage::Cid, Vec<(storage::Cid, Bytes)>) {
    use rust_unixfs::file::adder::FileAdder;
    let mut adder = FileAdder::builder().with_cid_version(cid::Version::V0).with_raw_leaves(false).build();
    let (mut blocks, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (made, used) = adder.push(rest);
        blocks.extend(made.map(|(cid, block)| (cid, Bytes::from(block))));
        rest = &rest[used..];
    }
    blocks.extend(adder.finish().map(|(cid, block)| (cid, Bytes::from(block))));
    blocks.reverse();
    (blocks[0].0, blocks)
}

#[tokio::test]
async fn a_directory_is_kept_and_carried_but_is_no_file() {
    let test = TestStore::new().await;
    let leaf = Bytes::from_static(b"hello rio\n");
    let leaf_cid = parse_cid("bafkreihvom622zmiuvui4thpp7vncpxxd7mzlpul2cht42d6w6nirv46du").unwrap();
    let root = parse_cid("bafybeifjd23gfp4n5jobzizysvd5irgdpv67wxmvdh7xw7nzoybalaquc4").unwrap();
    let directory =
        "12330a2401551220f5733dad6588a5688e4cef7fead13ef71fd995be8bd08f3e687eb79a88d79e1d120968656c6c6f2e747874180a0a020801";
    let directory = Bytes::from(hex::decode(directory).unwrap());
    test.store.put_block(&root, directory).await.unwrap();
    assert_eq!(test.store.missing(&root).await.unwrap(), [leaf_cid]);
    assert!(matches!(test.store.export_car(&root).await, Err(Error::Missing(cid)) if cid == leaf_cid));
    test.store.put_block(&leaf_cid, leaf).await.unwrap();
    assert_eq!(test.store.missing(&root).await.unwrap(), []);
    assert!(matches!(test.store.read(&root).await, Err(Error::NotAFile(cid)) if cid == root));
    let other = TestStore::new().await;
    other.store.import_car(&car_of(&test.store, &root).await[..], &root, "dir", Limits::default()).await.unwrap();
    assert_eq!(read_all(&other.store, &leaf_cid).await.unwrap(), b"hello rio\n");
}

#[test]
fn texts_that_are_no_usable_id_are_refused_by_name() {
    for text in ["", "hello", "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyk", &"b".repeat(10_000)] {
        assert!(matches!(parse_cid(text), Err(Error::InvalidCid(_))), "{text}");
    }
    let digest = cid::multihash::Multihash::<64>::wrap(0x1b, &[0; 32]).unwrap();
    let keccak = storage::Cid::new_v1(0x55, digest).to_string();
    assert!(matches!(parse_cid(&keccak), Err(Error::Unsupported { .. })));
    let digest = cid::multihash::Multihash::<64>::wrap(0x12, &[0; 20]).unwrap();
    let short = storage::Cid::new_v1(0x55, digest).to_string();
    assert!(matches!(parse_cid(&short), Err(Error::Unsupported { .. })));
    let digest = cid::multihash::Multihash::<64>::wrap(0x12, &[0; 32]).unwrap();
    let cbor = storage::Cid::new_v1(0x71, digest).to_string();
    assert!(matches!(parse_cid(&cbor), Err(Error::Unsupported { .. })));
}
