//! Records of joins between two real nodes in one process: the insurer gets those from before the contract, page by page.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::VecDeque;

use common::{GROUP, Node, Wishes, id};
use contracts::contract::State;
use contracts::ids::{DevAddr, DevEui};
use contracts::node_record::SealingKey;
use contracts::sealed::{Recipient, Sealed};
use contracts::write_ahead::{Bound, JOINS, PAGE_CHARS_MAX, RecordsView};
use edge_node::insurance::records;
use kit::clock::Clock;
use lora_bridge::mac::join::{DeviceRecord, Nonces};
use lora_bridge::mac::session::{NwkSKey, Session};
use peering::in_process::Network;

const CUSTOMER: u8 = 1;
const INSURER: u8 = 2;
const PURPOSE: &str = "antirio device record v1";

fn record(device: u64, version: u32) -> DeviceRecord {
    let device = DevEui::from_u64(device);
    let session = Session::new(device, DevAddr::from_u32(version), NwkSKey::from_bytes([7; 16]));
    DeviceRecord {
        device,
        version,
        nonces: Nonces { dev_nonces: VecDeque::from([1]), join_nonce_next: 2 },
        session,
        requested_at: None,
        past: Vec::new(),
    }
}

fn sealed(record: &DeviceRecord, to: &[SealingKey]) -> Sealed {
    Sealed::seal(&serde_json::to_vec(record).unwrap(), to, PURPOSE).unwrap()
}

/// On the node's disk, as if it had written it ahead.
async fn keep(node: &Node, device: u64, version: u32, sealed: &Sealed) {
    let (store, device) = (&node.core.store, DevEui::from_u64(device));
    let blob = serde_json::to_vec(sealed).unwrap();
    store.put_tenant_value(GROUP, &format!(".record.{device}"), &blob, u32::MAX).await.unwrap();
    store.raise_reserved(GROUP, &[Bound { device, session: JOINS, upto: version }]).await.unwrap();
}

async fn parties() -> (Node, Node) {
    let network = Network::new(Clock::system());
    let customer = Node::start_as(&network, CUSTOMER, Wishes::default()).await;
    let insurer = Node::start_as(&network, INSURER, Wishes::default()).await;
    for (node, other) in [(&customer, &insurer), (&insurer, &customer)] {
        node.core.directory.put(&other.core.record).await.unwrap();
        let image = (customer.image.1.as_str(), customer.image.2.as_str());
        node.add_contract(CUSTOMER, INSURER, GROUP, image, State::Standby { activations: 0 }).await;
    }
    (customer, insurer)
}

async fn joins(node: &Node, device: u64) -> u32 {
    node.core.store.list_reserved(GROUP).await.unwrap().joins(DevEui::from_u64(device))
}

#[tokio::test]
async fn the_insurer_gets_joins_from_before_the_contract_in_bounded_pages() {
    let (customer, insurer) = parties().await;
    let [own, other] = [&customer, &insurer].map(|node| node.core.identity.unsealing.public());
    // The first fills a page by itself; the second is for the customer alone; the third is for nobody here.
    let mut first = sealed(&record(1, 5), &[own, other]);
    let ciphertext = vec![0; PAGE_CHARS_MAX / 2];
    first.recipients.push(Recipient { key: SealingKey([9; 32]), encapsulated: vec![0; 32], ciphertext });
    keep(&customer, 1, 5, &first).await;
    keep(&customer, 2, 6, &sealed(&record(2, 6), &[own])).await;
    keep(&customer, 3, 7, &sealed(&record(3, 7), &[SealingKey([9; 32])])).await;
    keep(&customer, 4, 8, &sealed(&record(4, 8), &[own, other])).await;

    let path = format!("/peer/v1/groups/{GROUP}/records");
    let page: RecordsView = insurer.core.client.get(id(CUSTOMER), &path).await.unwrap();
    assert_eq!((page.sealed.len(), page.bounds.len(), page.next), (1, 1, Some(DevEui::from_u64(1))));

    records::pull(&insurer.parts, GROUP, id(CUSTOMER)).await.unwrap();
    let known = [joins(&insurer, 1).await, joins(&insurer, 2).await, joins(&insurer, 3).await, joins(&insurer, 4).await];
    assert_eq!(known, [5, 6, 0, 8], "one that does not open keeps none of the others away");
}
