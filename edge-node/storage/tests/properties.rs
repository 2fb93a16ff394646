//! Properties over generated content and generated damage; a failing case is printed with its seed by proptest.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{TestStore, car_of, content, read_all};
use proptest::prelude::*;
use storage::{Error, Limits};

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Lengths near the ends of chunks, and any.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..5000_usize,
        (0..6_usize, 0..3_usize).prop_map(|(chunks, near)| (chunks * 262_144 + near).saturating_sub(1)),
        0..2_000_000_usize
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn content_survives_add_export_import_read(length in length(), seed in "[a-z]{1,8}") {
        run(async {
            let (here, there) = (TestStore::new().await, TestStore::new().await);
            let bytes = content(&seed, length);
            let cid = here.store.add(&bytes[..], "image").await.unwrap();
            let car = car_of(&here.store, &cid).await;
            there.store.import_car(&car[..], &cid, "image", Limits::default()).await.unwrap();
            prop_assert!(read_all(&there.store, &cid).await.unwrap() == bytes);
            prop_assert_eq!(there.store.add(&bytes[..], "image").await.unwrap(), cid);
            prop_assert_eq!(there.store.usage(), here.store.usage());
            Ok(())
        })?;
    }

    #[test]
    fn a_damaged_stream_never_gives_wrong_content(length in 262_145..700_000_usize, damage in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4), near_start: bool) {
        run(async {
            let (here, there) = (TestStore::new().await, TestStore::new().await);
            let bytes = content("damage", length);
            let cid = here.store.add(&bytes[..], "image").await.unwrap();
            let mut car = car_of(&here.store, &cid).await;
            let reach = if near_start { 300 } else { car.len() };
            for (position, change) in damage {
                car[position.index(reach)] ^= change;
            }
            if there.store.import_car(&car[..], &cid, "image", Limits::default()).await.is_ok() {
                // Damage may cancel itself out, or hit a header field that says nothing about the content.
                prop_assert!(read_all(&there.store, &cid).await.unwrap() == bytes);
            } else {
                prop_assert!(there.store.pins().is_empty());
                let verification = there.store.verify(&cid).await.unwrap();
                prop_assert!(verification.corrupt.is_empty());
                prop_assert!(there.store.usage().bytes <= here.store.usage().bytes);
            }
            Ok(())
        })?;
    }

    #[test]
    fn any_bytes_as_a_node_are_an_answer_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        run(async {
            use multihash_codetable::MultihashDigest as _;
            let test = TestStore::new().await;
            let cid = storage::Cid::new_v1(0x70, multihash_codetable::Code::Sha2_256.digest(&bytes));
            test.store.put_block(&cid, bytes.into()).await.unwrap();
            let expected = |error: &Error| matches!(error, Error::Malformed { .. } | Error::NotAFile(_) | Error::Missing(_) | Error::Unsupported { .. });
            if let Err(error) = test.store.missing(&cid).await {
                prop_assert!(expected(&error), "{:?}", error);
            }
            if let Err(error) = test.store.read(&cid).await {
                prop_assert!(expected(&error), "{:?}", error);
            }
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Changes of a valid node: closer to what a liar sends than random bytes.
    #[test]
    fn a_changed_node_is_an_answer_and_no_panic(position in any::<prop::sample::Index>(), change in 1..=255_u8, cut in any::<prop::sample::Index>()) {
        run(async {
            use multihash_codetable::MultihashDigest as _;
            let node = "122a0a2212205d7b11211a3c4905a144b6f9babc4ce92f0244d5d358c127b0cdd5e8924d44b11200188e8010122a0a221220d4ee8ba6cd7d67345c88319e2c620c38757ce06af2aa856246073744800d73821200188e8010122a0a221220a3624c8e8cbcd81f2cf34245f013bd1517e5f8cb3312a02f734b1db9557dfad8120018cecf040a12080218c0cf24208080102080801020c0cf04";
            let mut bytes = hex::decode(node).unwrap();
            bytes.truncate(bytes.len() - cut.index(20));
            let position = position.index(bytes.len());
            bytes[position] ^= change;
            let test = TestStore::new().await;
            let cid = storage::Cid::new_v1(0x70, multihash_codetable::Code::Sha2_256.digest(&bytes));
            test.store.put_block(&cid, bytes.into()).await.unwrap();
            drop(test.store.missing(&cid).await);
            drop(test.store.total_bytes(&cid).await);
            drop(test.store.collect_garbage().await);
            Ok::<(), TestCaseError>(())
        })?;
    }
}
