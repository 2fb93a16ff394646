//! What an insurer answers for, between real nodes in one process: customer, insurer and the customer's store. Each lie beside its honest twin.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{GROUP, Node, Wishes, id, keypair, uplinks};
use contracts::account::audit::{Conviction, Offence, Terms, convict};
use contracts::account::{Account, FrameDigest, Heard};
use contracts::contract::{Contract, State};
use contracts::envelope::Envelope;
use contracts::ids::{DevEui, Epoch, EventId, GroupId, SessionId, StatementId};
use contracts::time::{Millis, WallTime};
use edge_node::api::AccountsView;
use edge_node::edge2edge::client::Error;
use edge_node::edge2edge::messages::{AccountReport, Progress, ReceiptAnswer, ReceiptWanted};
use edge_node::insurance::accounts;
use edge_node::lora::standby;
use edge_node::readings::{Kind, Reading, Uplink};
use edge_node::store::InboxBatch;
use kit::clock::Clock;
use lora_bridge::mac::session::Mark;
use peering::in_process::Network;

const CUSTOMER: u8 = 1;
const INSURER: u8 = 2;
const STORE: u8 = 4;
const SESSION: SessionId = SessionId::from_bytes([5; 8]);

struct Trio {
    customer: Node,
    insurer: Node,
    store: Node,
    contract: Arc<Contract>,
}

impl Trio {
    async fn start() -> Self {
        let network = Network::new(Clock::system());
        let start = |number| Node::start_as(&network, number, Wishes::default());
        let (customer, insurer, store) = (start(CUSTOMER).await, start(INSURER).await, start(STORE).await);
        let image = (customer.image.1.clone(), customer.image.2.clone());
        let mut contract = None;
        for node in [&customer, &store, &insurer] {
            let state = State::Standby { activations: 0 };
            let id = node.add_contract(CUSTOMER, INSURER, GROUP, (&image.0, &image.1), state).await;
            contract = node.core.agreements.get(id).map(|agreement| agreement.contract);
        }
        Self { customer, insurer, store, contract: contract.unwrap() }
    }

    fn terms(&self) -> Terms {
        let members = vec![self.contract.customer.node, self.contract.provider.node];
        Terms { group: GROUP, members, store: self.contract.readings_to, patience: Millis::from_secs(60) }
    }

    /// What both parties show, as their owners get it from the API, before a judge an hour later.
    async fn judge(&self) -> Vec<Conviction> {
        let mut statements: Vec<Envelope> = Vec::new();
        for party in [&self.customer, &self.insurer] {
            let lines = party.text(&format!("/v1/accounts/{GROUP}/statements?since=0")).await;
            statements.extend(lines.lines().map(|line| serde_json::from_str::<Envelope>(line).unwrap()));
        }
        convict(&self.terms(), &statements, self.customer.core.clock.wall() + Millis::from_secs(3_600))
    }

    /// The store has these readings, whoever brought them.
    async fn deliver(&self, frames: std::ops::Range<u32>) {
        let readings = frames.map(reading).collect();
        let proof = Envelope::sign(&account(1, None, Vec::new()), &keypair(CUSTOMER));
        let (from, received_at, proof_id) = (id(CUSTOMER), WallTime(1), StatementId::from_bytes([1; 32]));
        self.store.core.store.insert_batches(&[InboxBatch { from, received_at, proof_id, proof, readings }]).await.unwrap();
    }

    /// Frames in the insurer's buffer, on disk and in the bridge.
    async fn kept(&self) -> (usize, usize) {
        let on_disk = self.insurer.core.store.list_kept(GROUP, 0, 100).await.unwrap().len();
        (on_disk, self.insurer.parts.bridge.stats().await.unwrap().buffer_frames)
    }
}

fn device() -> DevEui {
    DevEui::from_u64(1)
}

fn phy(f_cnt: u32) -> Vec<u8> {
    [&[0x40, 1, 2, 3, 4, 0][..], &f_cnt.to_le_bytes()[..]].concat()
}

fn event(f_cnt: u32) -> EventId {
    EventId::new(device(), SESSION, f_cnt)
}

fn uplink(f_cnt: u32, deliver: bool, heard_at: WallTime) -> Uplink {
    Uplink { phy: hex::encode(phy(f_cnt)), deliver, heard_at, ..uplinks::uplink(GROUP, device(), SESSION, f_cnt) }
}

fn reading(f_cnt: u32) -> Reading {
    Reading {
        event: event(f_cnt),
        group: GROUP,
        device: device(),
        session: SESSION,
        f_cnt,
        heard_at: WallTime(1),
        kind: Kind::Live,
        epoch: Epoch(1),
        decoded: serde_json::value::RawValue::from_string("{}".to_owned()).unwrap(),
    }
}

fn heard(f_cnt: u32) -> Heard {
    let frame = FrameDigest::of(&phy(f_cnt));
    Heard { device: device(), session: SESSION, f_cnt, frame, heard_at: WallTime(1), snr_tenth_db: 70 }
}

fn account(number: u64, previous: Option<StatementId>, heard: Vec<Heard>) -> Account {
    Account { group: GROUP, node: id(INSURER), number, previous, at: WallTime(1), heard, dropped: Vec::new() }
}

fn accounts_path() -> String {
    format!("/peer/v1/groups/{GROUP}/accounts")
}

#[tokio::test]
async fn forged_progress_loses_nothing_and_a_receipt_of_the_store_lets_go() {
    let trio = Trio::start().await;
    let now = trio.insurer.core.clock.wall();
    trio.insurer.core.log.hear((0..5).map(|f_cnt| uplink(f_cnt, false, now)).collect()).await.unwrap();
    standby::restore(&trio.insurer.core.store, &trio.insurer.parts.bridge, GROUP).await.unwrap();
    assert_eq!(trio.kept().await, (5, 5));

    // "The store has them all": it has none.
    let settled = (0..5).map(|f_cnt| Mark { device: device(), session: SESSION, f_cnt }).collect();
    let forged = Progress { served: Vec::new(), settled };
    let path = format!("/peer/v1/groups/{GROUP}/progress");
    let () = trio.customer.core.client.post(id(INSURER), &path, &forged).await.unwrap();
    accounts::collect_receipts(&trio.insurer.parts, &trio.contract).await;
    assert_eq!(trio.kept().await, (5, 5), "nothing goes by the word of a peer");

    trio.deliver(0..3).await;
    accounts::collect_receipts(&trio.insurer.parts, &trio.contract).await;
    assert_eq!(trio.kept().await, (2, 2), "what the store signed for goes");
    assert_eq!(trio.judge().await, []);
}

#[tokio::test]
async fn an_honest_insurer_is_acquitted_and_one_that_hides_a_frame_is_convicted() {
    let trio = Trio::start().await;
    let (insurer, long_ago) = (&trio.insurer.core, trio.insurer.core.clock.wall() - Millis::from_secs(600));
    insurer.log.hear((0..4).map(|f_cnt| uplink(f_cnt, f_cnt % 2 == 0, long_ago)).collect()).await.unwrap();
    assert_eq!(accounts::write(insurer, GROUP).await.unwrap(), 4);
    assert_eq!(accounts::write(insurer, GROUP).await.unwrap(), 0, "nothing new");
    accounts::tell(&trio.insurer.parts, &trio.contract).await.unwrap();
    assert!(insurer.store.list_untold_accounts(GROUP, 9).await.unwrap().is_empty());
    assert_eq!(trio.judge().await, [], "all of it is still on its disk");
    trio.deliver(0..3).await;
    accounts::collect_receipts(&trio.insurer.parts, &trio.contract).await;
    assert_eq!(trio.judge().await, [], "three with the store, one on its disk");

    // How much of what the customer heard did the insurer hear, too?
    trio.customer.core.log.append((0..8).map(|f_cnt| uplink(f_cnt, true, long_ago)).collect()).await.unwrap();
    let view: AccountsView = trio.customer.get(&format!("/v1/accounts/{GROUP}?since=0")).await;
    let coverage: Vec<_> = view.coverage.iter().map(|it| (it.device.as_str(), it.frames, it.committed)).collect();
    assert_eq!(coverage, [(device().to_string().as_str(), 8, 4)]);
    assert_eq!(view.accounts.iter().map(|it| (it.node, it.number, it.heard)).collect::<Vec<_>>(), [(id(INSURER), 1, 4)]);

    // It says that it heard frame 9, and has it nowhere.
    let lie = account(2, Some(view.accounts[0].id), vec![heard(9)]);
    let report = AccountReport { account: Envelope::sign(&lie, &keypair(INSURER)) };
    let () = insurer.client.post(id(CUSTOMER), &accounts_path(), &report).await.unwrap();
    let convictions = trio.judge().await;
    let found: Vec<_> = convictions.iter().map(|it| (it.node, it.offence, it.number, it.missing.clone())).collect();
    assert_eq!(found, [(id(INSURER), Offence::HeardNotServed, 2, vec![event(9)])]);

    // Another second account, for other ears.
    let other = account(2, Some(view.accounts[0].id), Vec::new());
    let report = AccountReport { account: Envelope::sign(&other, &keypair(INSURER)) };
    let () = insurer.client.post(id(CUSTOMER), &accounts_path(), &report).await.unwrap();
    let offences: Vec<_> = trio.judge().await.iter().map(|it| (it.node, it.offence, it.number)).collect();
    assert_eq!(offences, [(id(INSURER), Offence::TwoAccounts, 2), (id(INSURER), Offence::HeardNotServed, 2)]);
}

#[tokio::test]
async fn accounts_and_receipts_are_for_those_whom_they_concern() {
    let trio = Trio::start().await;
    let status = |error: Error| match error {
        Error::Refused(problem) => problem.status,
        other => panic!("{other}"),
    };
    let mine = account(1, None, vec![heard(1)]);
    let send = |by: &Node, to: u8, account: Envelope| {
        let client = by.core.client.clone();
        async move { client.post::<()>(id(to), &accounts_path(), &AccountReport { account }).await }
    };
    // In the insurer's name, by another; by the insurer to one who is not its customer; of another group.
    let forged = send(&trio.store, CUSTOMER, Envelope::sign(&mine, &keypair(INSURER))).await;
    assert_eq!(status(forged.unwrap_err()), 403);
    let misplaced = send(&trio.insurer, STORE, Envelope::sign(&mine, &keypair(INSURER))).await;
    assert_eq!(status(misplaced.unwrap_err()), 403);
    let elsewhere = Account { group: GroupId::from_bytes([8; 16]), ..mine.clone() };
    let elsewhere = send(&trio.insurer, CUSTOMER, Envelope::sign(&elsewhere, &keypair(INSURER))).await;
    assert_eq!(status(elsewhere.unwrap_err()), 403);
    let unsigned = send(&trio.insurer, CUSTOMER, Envelope::sign(&mine, &keypair(STORE))).await;
    assert!((400..500).contains(&status(unsigned.unwrap_err())));
    assert!(trio.customer.core.store.list_accounts(GROUP, WallTime(0), 9).await.unwrap().is_empty());

    // The store says what it has to those who may deliver, and of that group only.
    trio.deliver(0..1).await;
    let wanted = ReceiptWanted { events: vec![event(0), event(1)] };
    let path = format!("/peer/v1/groups/{GROUP}/receipts");
    let answer: ReceiptAnswer = trio.insurer.core.client.post(id(STORE), &path, &wanted).await.unwrap();
    let receipt = answer.receipt.unwrap().verify::<contracts::account::Receipt>().unwrap();
    assert_eq!((receipt.statement.store, receipt.statement.events), (id(STORE), vec![event(0)]));
    let stranger = trio.customer.core.client.post::<ReceiptAnswer>(id(INSURER), &path, &wanted).await;
    assert_eq!(status(stranger.unwrap_err()), 403);
    let other = format!("/peer/v1/groups/{}/receipts", GroupId::from_bytes([8; 16]));
    let refused = trio.insurer.core.client.post::<ReceiptAnswer>(id(STORE), &other, &wanted).await;
    assert_eq!(status(refused.unwrap_err()), 403);
}
