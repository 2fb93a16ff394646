//! The same over QUIC on loopback, each member in a runtime of its own that can die without a word.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::cluster::{GROUP, Judge, Member, TTL, all_follow, bytes, group, setup};
use common::{bind, config, id, soon};
use contracts::ids::Epoch;
use peering::custody::Role;
use peering::{AddressBook, Endpoint};
use tokio::runtime::Runtime;

struct Process {
    runtime: Runtime,
    member: Member,
    address: std::net::SocketAddr,
}

/// A member with its endpoint, at the address of its former process if there was one.
async fn start(number: u8, addresses: &AddressBook, at: Option<std::net::SocketAddr>, disk: &Path) -> Process {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let (mut config, disk) = (config(number, addresses), disk.to_owned());
    config.bind = at.unwrap_or(config.bind);
    let started = runtime.spawn(async move {
        let endpoint: Endpoint = bind(config).await;
        let address = endpoint.local_address().expect("bound");
        (Member::start(number, setup(number, Arc::new(endpoint), &disk), group(number)).await, address)
    });
    let (member, address) = soon("start", started).await.expect("started");
    Process { runtime, member, address }
}

/// SIGKILL: tasks and sockets are gone, nobody is told.
fn kill(process: Process) -> std::net::SocketAddr {
    process.runtime.shutdown_background();
    process.address
}

/// The whole story: A holds, dies, B takes over, A comes back as follower, B hands back.
#[tokio::test(flavor = "multi_thread")]
async fn killed_taken_over_returned_and_handed_back() {
    let (book, disk) = (AddressBook::new(), tempfile::tempdir().expect("a directory"));
    let w = start(3, &book, None, disk.path()).await;
    let a = start(1, &book, None, disk.path()).await;
    assert_eq!(a.member.holds().await, Epoch(1));
    let b = start(2, &book, None, disk.path()).await;
    all_follow(&[&b.member, &w.member], id(1), Epoch(1)).await;
    let hold_of_a = a.member.hold.clone();
    let judge = Judge::watch(vec![hold_of_a.clone(), b.member.hold.clone()]);

    let address = kill(a);
    let killed_at = Instant::now();
    let epoch = b.member.holds().await;
    let took = killed_at.elapsed();
    assert!(took < Duration::from_millis(TTL.0 + 400), "takeover took {took:?}");
    assert!(hold_of_a.epoch().is_none());
    b.member.sees("the missing customer", |view| view.missing == [id(1)]).await;
    judge.verdict();

    let a = start(1, &book, Some(address), disk.path()).await;
    let judge = Judge::watch(vec![a.member.hold.clone(), b.member.hold.clone()]);
    all_follow(&[&a.member, &w.member], id(2), epoch).await;
    b.member.sees("nobody missing", |view| view.missing.is_empty()).await;
    assert!(b.member.hold.holds(epoch));

    let released_at = Instant::now();
    b.member.handle.release(GROUP, Some(id(1)), bytes(20_000, 9)).await.expect("held");
    let back = a.member.holds().await;
    let took = released_at.elapsed();
    assert_eq!(back, epoch.next());
    assert!(took < Duration::from_millis(TTL.0 / 2), "hand-back took {took:?}");
    let view = a.member.sees("the handover", |view| view.released.is_some()).await;
    assert_eq!(view.released.expect("seen").handover, bytes(20_000, 9));
    judge.verdict();
    println!("takeover and hand-back over QUIC: hand-back {took:?}");
    for process in [a, b, w] {
        kill(process);
    }
}

/// The witness dies and comes back: the holder goes on with the provider's promises alone, and is warned meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_witness_is_an_alarm_and_no_outage() {
    let (book, disk) = (AddressBook::new(), tempfile::tempdir().expect("a directory"));
    let w = start(3, &book, None, disk.path()).await;
    let a = start(1, &book, None, disk.path()).await;
    assert_eq!(a.member.holds().await, Epoch(1));
    let b = start(2, &book, None, disk.path()).await;
    all_follow(&[&b.member, &w.member], id(1), Epoch(1)).await;
    let address = kill(w);
    a.member.sees("the missing witness", |view| view.missing == [id(3)]).await;
    assert!(a.member.hold.holds(Epoch(1)));
    let w = start(3, &book, Some(address), disk.path()).await;
    a.member.sees("the witness again", |view| view.missing.is_empty()).await;
    all_follow(&[&b.member, &w.member], id(1), Epoch(1)).await;
    assert!(a.member.hold.holds(Epoch(1)));

    kill(w);
    kill(b);
    a.member.sees("its fence", |view| view.role == Role::Fenced { epoch: Epoch(1) }).await;
    assert!(a.member.hold.epoch().is_none());
    kill(a);
}
