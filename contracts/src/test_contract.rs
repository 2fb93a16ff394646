//! A contract for the tests of this crate.

use std::collections::{BTreeMap, BTreeSet};

use crate::blueprint::{Activation, Blueprint, Service};
use crate::contract::text::{Contract, Money, Party, Terms};
use crate::envelope::Keypair;
use crate::ids::{DevEui, GroupId};
use crate::money::{Amount, Currency};
use crate::resources::Resources;
use crate::time::{Millis, WallTime};

pub(crate) const DAY_MS: u64 = 86_400_000;

pub(crate) fn key(n: u8) -> Keypair {
    Keypair::from_secret(&[n; 32])
}

pub(crate) fn money(premium: u64, days: u32, included: u64, hour: u64, hours_max: u64, customer: u64, provider: u64) -> Money {
    let micros = |n| Amount::from_micros(n).expect("small");
    let small = |n| u32::try_from(n).expect("small");
    Money {
        currency: Currency::new("EUR").expect("a currency"),
        premium_per_day: micros(premium),
        days,
        included_hours: small(included),
        served_hour_cost: micros(hour),
        served_hours_max: small(hours_max),
        customer_stake: Amount::from_units(small(customer)),
        provider_stake: Amount::from_units(small(provider)),
    }
}

/// Customer key 1 (owner 11), provider key 2 (owner 12), witness and arbitrator key 3; 30 days from day 100.
pub(crate) fn contract() -> Contract {
    let cid = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".to_owned();
    let service = Service {
        name: "lora".to_owned(),
        image: cid.clone(),
        image_id: format!("sha256:{}", "0".repeat(64)),
        command: vec![],
        environment: BTreeMap::new(),
        depends_on: vec![],
        memory_bytes_max: 1 << 20,
        cpu_millis_max: 100,
        pids_max: 4,
    };
    Contract {
        customer: Party { node: key(1).node_id(), owner: key(11).owner_id() },
        provider: Party { node: key(2).node_id(), owner: key(12).owner_id() },
        witnesses: vec![key(3).node_id()],
        arbitrator: key(3).node_id(),
        readings_to: key(4).node_id(),
        group: GroupId::from_bytes([4; 16]),
        devices: BTreeSet::from([DevEui::from_u64(1), DevEui::from_u64(2)]),
        blueprint: Blueprint {
            services: vec![service],
            needs: Resources::default(),
            capabilities: BTreeSet::new(),
            activation: Activation::Offline,
        },
        network_configuration: cid.clone(),
        application_configuration: cid,
        terms: Terms {
            ttl: Millis(1_000),
            deadline: Millis(3_000),
            handback_quiet: Millis(2_000),
            handback_deadline: Millis(60_000),
            grace: Millis(60_000),
            counter_block: 16,
            buffer_frames_max: 1_000,
            buffer_bytes_max: 1_000_000,
            buffer_hours_max: 24,
            mirror: false,
            activations_max: 2,
        },
        money: money(1_000_000, 30, 2, 500_000, 10, 30, 40),
        matched_by: None,
        nonce: 1,
        valid_from: WallTime(100 * DAY_MS),
        valid_until: WallTime(130 * DAY_MS),
    }
}
