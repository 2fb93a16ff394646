//! Golden vectors of signed documents: made here from fixed keys, read back, and made again byte for byte. Anyone who writes another
//! implementation can test it against `vectors/`. `UPDATE_GOLDEN=1` writes the files; a change of an existing one breaks what was signed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use contracts::blueprint::{Activation, Blueprint, Service};
use contracts::contract::{Contract, Money, Party, Terms};
use contracts::envelope::{Envelope, Error, Keypair, PAYLOAD_BYTES_MAX, SIGNATURES_MAX, Statement, Verified};
use contracts::geo::Position;
use contracts::ids::{DevEui, GroupId, NodeId, StatementId};
use contracts::listing::{Demand, Match, Offer, Withdrawal};
use contracts::money::{Amount, Currency};
use contracts::node_record::{NodeRecord, Role};
use contracts::proof::{self, BatchProof};
use contracts::resources::{Interface, Resources};
use contracts::sealed::{Sealed, UnsealingKey};
use contracts::time::{Millis, WallTime};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// 2026-01-01 00:00:00 UTC.
const START: WallTime = WallTime(1_767_225_600_000);
const DAY: Millis = Millis::from_secs(86_400);
const PURPOSE: &str = "antirio golden vector";
const SECRET: &str = "network session keys";

/// The secret of a key pair is one byte, 32 times.
fn key(byte: u8) -> Keypair {
    Keypair::from_secret(&[byte; 32])
}

const RIO: u8 = 1;
const PATRAS: u8 = 2;
const ARBITRATOR: u8 = 3;
const CLOUD: u8 = 4;
const MARKETPLACE: u8 = 5;
const RIO_OWNER: u8 = 11;
const PATRAS_OWNER: u8 = 12;

fn node(byte: u8) -> NodeId {
    key(byte).node_id()
}

fn signed<T: Statement>(statement: &T, signers: &[u8]) -> Envelope {
    let mut envelope = Envelope::sign(statement, &key(signers[0]));
    signers[1..].iter().for_each(|byte| envelope.cosign(&key(*byte)));
    envelope
}

fn resources(slots: u64) -> Resources {
    let interfaces = vec![Interface { kind: "lora".into(), region: "EU868".into(), slots }];
    let memory_bytes = slots << 18;
    Resources {
        cpu_millis: 500,
        memory_bytes,
        storage_bytes: 1 << 28,
        bandwidth_bps: 64_000,
        uptime_s: 86_400,
        battery_wh: Some(20),
        interfaces,
    }
}

fn euro() -> Currency {
    Currency::new("EUR").expect("three capitals")
}

fn capabilities() -> BTreeSet<String> {
    BTreeSet::from(["lora:EU868".to_owned()])
}

fn record() -> NodeRecord {
    NodeRecord {
        node: node(RIO),
        owner: key(RIO_OWNER).owner_id(),
        name: "rio".into(),
        role: Role::Edge,
        addresses: vec!["192.0.2.1:4433".parse().expect("IPv4"), "[2001:db8::1]:4433".parse().expect("IPv6")],
        sealing_key: UnsealingKey::derive(&key(RIO).secret()).public(),
        position: Some(Position { latitude_e7: 383_100_000, longitude_e7: 217_800_000 }),
        record_epoch: 7,
    }
}

fn offer() -> Offer {
    Offer {
        node: node(PATRAS),
        owner: key(PATRAS_OWNER).owner_id(),
        nonce: 1,
        free: resources(1_000),
        capabilities: capabilities(),
        position: Position { latitude_e7: 383_300_000, longitude_e7: 217_670_000 },
        radio_range_m: 5_000,
        currency: euro(),
        ask_per_day: Amount::from_units(2),
        served_hour_cost: Amount::from_units(1),
        deadline: Millis(1_500),
        stake_max: Amount::from_units(100),
        witnesses: BTreeSet::from([node(ARBITRATOR), node(CLOUD)]),
        valid_from: START,
        valid_until: START + DAY,
    }
}

fn demand() -> Demand {
    Demand {
        node: node(RIO),
        owner: key(RIO_OWNER).owner_id(),
        nonce: 9_007_199_254_740_991, // the largest that every JSON reader keeps
        needs: resources(200),
        capabilities: capabilities(),
        devices: vec![
            Position { latitude_e7: 383_100_000, longitude_e7: 217_800_000 },
            Position { latitude_e7: 383_200_000, longitude_e7: 217_700_000 },
        ],
        currency: euro(),
        bid_per_day: Amount::from_micros(3_000_001).expect("small"),
        served_hour_cost_max: Amount::from_units(1),
        deadline_max: Millis(2_000),
        stake_min: Amount::from_units(50),
        reputation_min_permille: 500,
        witnesses: BTreeSet::from([node(ARBITRATOR)]),
        days: 30,
        valid_from: START,
        valid_until: START + DAY,
    }
}

fn withdrawal() -> Withdrawal {
    Withdrawal { node: node(PATRAS), listing: signed(&offer(), &[PATRAS]).id() }
}

fn matched() -> Match {
    Match {
        marketplace: node(MARKETPLACE),
        round: 42,
        offer: signed(&offer(), &[PATRAS]).id(),
        demand: signed(&demand(), &[RIO]).id(),
        provider: node(PATRAS),
        customer: node(RIO),
        currency: euro(),
        price_per_day: Amount::from_micros(2_500_000).expect("small"),
        matched_at: START,
        held_until: START + Millis::from_secs(120),
    }
}

fn contract() -> Contract {
    let cid = |n: u8| format!("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52z{}", char::from(b'a' + n));
    let service = Service {
        name: "lora".into(),
        image: cid(0),
        image_id: format!("sha256:{}", "ab".repeat(32)),
        command: vec!["/lora".into()],
        environment: BTreeMap::from([("LOG".into(), "info".into())]),
        depends_on: vec![],
        memory_bytes_max: 16 << 20,
        cpu_millis_max: 200,
        pids_max: 8,
    };
    let unit = Amount::from_units;
    Contract {
        customer: Party { node: node(RIO), owner: key(RIO_OWNER).owner_id() },
        provider: Party { node: node(PATRAS), owner: key(PATRAS_OWNER).owner_id() },
        witnesses: vec![node(ARBITRATOR)],
        arbitrator: node(ARBITRATOR),
        readings_to: node(CLOUD),
        group: GroupId::from_bytes([0x6a; 16]),
        devices: BTreeSet::from([DevEui::from_u64(0x0102_0304_0506_0708), DevEui::from_u64(1)]),
        blueprint: Blueprint {
            services: vec![service],
            needs: resources(200),
            capabilities: capabilities(),
            activation: Activation::Offline,
        },
        network_configuration: cid(1),
        application_configuration: cid(2),
        terms: Terms {
            ttl: Millis(1_000),
            deadline: Millis(1_500),
            handback_quiet: Millis(500),
            handback_deadline: Millis(60_000),
            grace: Millis(60_000),
            counter_block: 16,
            buffer_frames_max: 10_000,
            buffer_bytes_max: 10_000_000,
            buffer_hours_max: 24,
            mirror: true,
            activations_max: 10,
        },
        money: Money {
            currency: euro(),
            premium_per_day: Amount::from_micros(2_500_000).expect("small"),
            days: 30,
            included_hours: 10,
            served_hour_cost: unit(1),
            served_hours_max: 48,
            customer_stake: unit(123),
            provider_stake: unit(123),
        },
        matched_by: Some(signed(&matched(), &[MARKETPLACE]).id()),
        nonce: 1,
        valid_from: START,
        valid_until: START + DAY * 30,
    }
}

fn batch_proof() -> BatchProof {
    let readings: Vec<String> = (0..5).map(|n| format!("reading {n}")).collect();
    BatchProof {
        node: node(RIO),
        group: GroupId::from_bytes([0x6a; 16]),
        readings: 5,
        root: hex::encode(proof::root(&readings)),
        made_at: START,
    }
}

/// A statement with everything that a reader must find in it.
fn vector<T: Statement + PartialEq + std::fmt::Debug>(
    name: &'static str,
    statement: &T,
    signers: &[u8],
) -> (&'static str, Value) {
    let envelope = signed(statement, signers);
    let Verified { id, statement: read, signers: keys } = envelope.verify::<T>().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(&read, statement, "{name}");
    let text = std::str::from_utf8(&envelope.payload).expect("JSON is UTF-8");
    let secrets: Vec<_> = signers.iter().map(|byte| hex::encode([*byte; 32])).collect();
    (
        name,
        json!({ "type": T::TYPE, "signer_secrets": secrets, "signers": keys, "id": id, "payload": text, "envelope": envelope }),
    )
}

fn vectors() -> Vec<(&'static str, Value)> {
    vec![
        vector("node-record", &record(), &[RIO, RIO_OWNER]),
        vector("offer", &offer(), &[PATRAS]),
        vector("demand", &demand(), &[RIO]),
        vector("withdrawal", &withdrawal(), &[PATRAS]),
        vector("match", &matched(), &[MARKETPLACE]),
        vector("contract", &contract(), &[RIO, PATRAS, ARBITRATOR]),
        vector("batch-proof", &batch_proof(), &[RIO]),
    ]
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(format!("{name}.json"))
}

fn render(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("JSON") + "\n"
}

/// The file, after writing it if that was asked for.
fn golden(name: &str, made: &Value) -> Value {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path(name).parent().expect("a directory")).expect("directory");
        fs::write(path(name), render(made)).expect("file");
    }
    let text = fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{name}: {e}; UPDATE_GOLDEN=1 writes it"));
    assert!(text == render(made), "vectors/{name}.json is not what the code makes");
    serde_json::from_str(&text).expect("JSON")
}

/// Verifies as a receiver of that type does; node records need both their keys.
fn verify(payload_type: &str, envelope: &Envelope) -> Result<StatementId, Error> {
    fn id<T: Statement>(envelope: &Envelope) -> Result<StatementId, Error> {
        envelope.verify::<T>().map(|v| v.id)
    }
    match payload_type {
        NodeRecord::TYPE => NodeRecord::verify(envelope).map(|v| v.id),
        Offer::TYPE => id::<Offer>(envelope),
        Demand::TYPE => id::<Demand>(envelope),
        Withdrawal::TYPE => id::<Withdrawal>(envelope),
        Match::TYPE => id::<Match>(envelope),
        Contract::TYPE => id::<Contract>(envelope),
        BatchProof::TYPE => id::<BatchProof>(envelope),
        other => panic!("{other}"),
    }
}

#[test]
fn every_vector_verifies_and_is_made_again_byte_for_byte() {
    for (name, made) in vectors() {
        let vector = golden(name, &made);
        let payload_type = vector["type"].as_str().expect("type");
        let envelope: Envelope = serde_json::from_value(vector["envelope"].clone()).expect("envelope");
        let id = verify(payload_type, &envelope).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(json!(id), vector["id"], "{name}");

        // The same again without the code under test: id by SHA-256 over the DSSE encoding, signatures by ed25519 over it.
        let payload = vector["payload"].as_str().expect("payload");
        let encoding = format!("DSSEv1 {} {payload_type} {} {payload}", payload_type.len(), payload.len());
        assert_eq!(json!(format!("statement_{}", hex::encode(Sha256::digest(&encoding)))), vector["id"], "{name}");
        for (signature, secret) in envelope.signatures.iter().zip(vector["signer_secrets"].as_array().expect("secrets")) {
            let secret: [u8; 32] = hex::decode(secret.as_str().expect("hex")).expect("hex").try_into().expect("32 bytes");
            let signer = ed25519_dalek::SigningKey::from_bytes(&secret);
            assert_eq!(signature.key.as_bytes(), signer.verifying_key().as_bytes(), "{name}");
            assert_eq!(signature.sig, ed25519_dalek::Signer::sign(&signer, encoding.as_bytes()).to_bytes(), "{name}");
        }
    }
}

#[test]
fn cosigning_keeps_the_id_and_any_other_change_does_not() {
    let (one, all) = (signed(&contract(), &[RIO]), signed(&contract(), &[RIO, PATRAS, ARBITRATOR]));
    assert_eq!((one.id(), one.payload), (all.id(), all.payload));
    let ids: BTreeSet<_> = vectors().into_iter().map(|(_, v)| v["id"].to_string()).collect();
    assert_eq!(ids.len(), vectors().len());
    assert_ne!(signed(&Offer { nonce: 2, ..offer() }, &[PATRAS]).id(), signed(&offer(), &[PATRAS]).id());
}

/// An offer whose payload text was changed and signed as it then was.
fn resigned(change: impl Fn(&str) -> String) -> Envelope {
    let mut envelope = signed(&offer(), &[PATRAS]);
    let text = String::from_utf8(envelope.payload).expect("JSON");
    let changed = change(&text);
    assert_ne!(changed, text, "the change must change something");
    (envelope.payload, envelope.signatures) = (changed.into_bytes(), Vec::new());
    envelope.cosign(&key(PATRAS));
    envelope
}

/// As JSON, with the one signature replaced.
fn with_signature(keyid: [u8; 32], sig: [u8; 64]) -> Value {
    let mut envelope = signed(&offer(), &[PATRAS]);
    envelope.signatures[0].sig = sig.to_vec();
    let mut value = json!(envelope);
    value["signatures"][0]["keyid"] = json!(hex::encode(keyid));
    value
}

/// The same signature with S + L for S, L being the order of the group: it verifies where S is not checked.
fn non_canonical_s() -> Value {
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut sig: [u8; 64] = signed(&offer(), &[PATRAS]).signatures[0].sig.clone().try_into().expect("64 bytes");
    let mut carry = 0;
    for (s, l) in sig[32..].iter_mut().zip(L) {
        let sum = u16::from(*s) + u16::from(l) + carry;
        (*s, carry) = (sum.to_le_bytes()[0], sum >> 8);
    }
    assert_eq!(carry, 0);
    with_signature(*key(PATRAS).key().as_bytes(), sig)
}

/// A point's bytes with the lowest and the others set; the sign bit stays clear.
fn point(lowest: u8, others: u8) -> [u8; 32] {
    let mut bytes = [others; 32];
    (bytes[0], bytes[31]) = (lowest, others & 0x7f);
    bytes
}

/// R = the neutral point, S = 0: true for every message under a key of small order, where that is not checked.
fn neutral_signature() -> [u8; 64] {
    let mut sig = [0; 64];
    sig[0] = 1;
    sig
}

/// What must be refused.
struct Refused {
    name: &'static str,
    why: &'static str,
    /// The type of statement that the receiver wants.
    received_as: &'static str,
    /// A variant of `envelope::Error`, or `Envelope` if it is not even one.
    error: &'static str,
    envelope: Value,
}

fn refuse(name: &'static str, why: &'static str, received_as: &'static str, error: &'static str, envelope: Value) -> Refused {
    Refused { name, why, received_as, error, envelope }
}

fn refused_signatures() -> Vec<Refused> {
    let offered = signed(&offer(), &[PATRAS]);
    let relabelled = Envelope { payload_type: Offer::TYPE.into(), ..signed(&demand(), &[RIO]) };
    let mut changed_payload = offered.clone();
    let digit = changed_payload.payload.iter().rposition(u8::is_ascii_digit).expect("a number");
    changed_payload.payload[digit] ^= 1;
    let mut changed_signature = offered.clone();
    changed_signature.signatures[0].sig[0] ^= 1;
    let mut short_signature = offered.clone();
    short_signature.signatures[0].sig.pop();
    let mut one_bad = signed(&offer(), &[PATRAS, RIO]);
    one_bad.signatures[1].sig[0] ^= 1;
    let mut twice = offered.clone();
    twice.signatures.push(offered.signatures[0].clone());
    let unsigned = Envelope { signatures: vec![], ..offered.clone() };
    let many: Vec<u8> = (100..=100 + u8::try_from(SIGNATURES_MAX).expect("small")).collect();
    let many = signed(&offer(), &many);
    let (by_node, by_owner) = (signed(&record(), &[RIO]), signed(&record(), &[RIO_OWNER]));
    let weak = |key| with_signature(key, neutral_signature());
    let offer = Offer::TYPE;
    vec![
        refuse("wrong-type", "an offer received where a demand is wanted", Demand::TYPE, "Type", json!(offered)),
        refuse(
            "relabelled",
            "a demand under the type of an offer: the type is signed too",
            offer,
            "Signature",
            json!(relabelled),
        ),
        refuse("changed-payload", "one bit of the payload", offer, "Signature", json!(changed_payload)),
        refuse("changed-signature", "one bit of the signature", offer, "Signature", json!(changed_signature)),
        refuse("short-signature", "63 bytes", offer, "Signature", json!(short_signature)),
        refuse("one-bad-signature", "every signature that is there must verify", offer, "Signature", json!(one_bad)),
        refuse("small-order-key", "the neutral point signs everything", offer, "Signature", weak(point(1, 0))),
        refuse("non-canonical-key", "the neutral point as y = p + 1", offer, "Signature", weak(point(0xee, 0xff))),
        refuse("no-point-key", "y = 2 is not on the curve", offer, "Key", weak(point(2, 0))),
        refuse("non-canonical-s", "S + L instead of S", offer, "Signature", non_canonical_s()),
        refuse("signed-twice", "the same signature two times", offer, "SignedTwice", json!(twice)),
        refuse("unsigned", "no signature", offer, "SignatureCount", json!(unsigned)),
        refuse("too-many-signatures", "seventeen", offer, "SignatureCount", json!(many)),
        refuse("record-without-owner", "the node alone cannot say whose it is", NodeRecord::TYPE, "Missing", json!(by_node)),
        refuse("record-without-node", "an owner cannot claim a node", NodeRecord::TYPE, "Missing", json!(by_owner)),
    ]
}

fn refused_payloads() -> Vec<Refused> {
    let replaced = |from: &'static str, to: &'static str| json!(resigned(|text| text.replacen(from, to, 1)));
    let backwards = signed(&Offer { valid_until: START, ..offer() }, &[PATRAS]);
    let alone = signed(&Match { customer: node(PATRAS), ..matched() }, &[MARKETPLACE]);
    let offer = Offer::TYPE;
    vec![
        refuse(
            "unknown-field",
            "this version does not know it",
            offer,
            "Payload",
            replaced("{\"node\"", "{\"colour\":\"red\",\"node\""),
        ),
        refuse(
            "duplicate-field",
            "two nonces: readers could differ",
            offer,
            "Payload",
            replaced("\"nonce\":1", "\"nonce\":2,\"nonce\":1"),
        ),
        refuse("missing-field", "no nonce", offer, "Payload", replaced("\"nonce\":1,", "")),
        refuse("float", "1.0 is no integer", offer, "Payload", replaced("\"nonce\":1", "\"nonce\":1.0")),
        refuse("exponent", "1e0 is no integer", offer, "Payload", replaced("\"nonce\":1", "\"nonce\":1e0")),
        refuse("negative", "nothing is below zero", offer, "Payload", replaced("\"nonce\":1", "\"nonce\":-1")),
        refuse("leading-zero", "an amount has one text", offer, "Payload", replaced("\"2000000\"", "\"02000000\"")),
        refuse("amount-as-number", "amounts are strings", offer, "Payload", replaced("\"2000000\"", "2000000")),
        refuse("amount-too-large", "above 2^53 micro-units", offer, "Payload", replaced("\"2000000\"", "\"9007199254740993\"")),
        refuse("trailing-bytes", "something behind the JSON", offer, "Payload", json!(resigned(|text| format!("{text} {{}}")))),
        refuse("not-json", "a payload of one brace", offer, "Payload", json!(resigned(|_| "{".into()))),
        refuse("ends-before-it-begins", "content is checked too", offer, "Invalid", json!(backwards)),
        refuse("insures-itself", "one node on both sides", Match::TYPE, "Invalid", json!(alone)),
    ]
}

fn refused_envelopes() -> Vec<Refused> {
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut value = json!(signed(&offer(), &[PATRAS]));
        change(&mut value);
        value
    };
    let offer = Offer::TYPE;
    vec![
        refuse("unknown-envelope-field", "a field beside the three", offer, "Envelope", changed(&|v| v["colour"] = json!("red"))),
        refuse(
            "loose-base64",
            "bits behind the last byte: two texts of one payload",
            offer,
            "Envelope",
            changed(&|v| v["payload"] = json!("e31=")),
        ),
        refuse("unpadded-base64", "padding is part of the form", offer, "Envelope", changed(&|v| v["payload"] = json!("e30"))),
        refuse("short-key", "62 digits", offer, "Envelope", changed(&|v| v["signatures"][0]["keyid"] = json!("ab".repeat(31)))),
    ]
}

fn refusal(payload_type: &str, envelope: &Value) -> &'static str {
    let Ok(envelope) = serde_json::from_value::<Envelope>(envelope.clone()) else { return "Envelope" };
    match verify(payload_type, &envelope) {
        Ok(id) => panic!("{id} was accepted"),
        Err(Error::Type { .. }) => "Type",
        Err(Error::TooLong { .. }) => "TooLong",
        Err(Error::SignatureCount { .. }) => "SignatureCount",
        Err(Error::Key { .. }) => "Key",
        Err(Error::Signature { .. }) => "Signature",
        Err(Error::SignedTwice { .. }) => "SignedTwice",
        Err(Error::Missing { .. }) => "Missing",
        Err(Error::Payload { .. }) => "Payload",
        Err(Error::Invalid(_)) => "Invalid",
    }
}

#[test]
fn what_must_be_refused_is_refused_for_its_reason() {
    let all = refused_signatures().into_iter().chain(refused_payloads()).chain(refused_envelopes());
    let made: Vec<Value> = all
        .map(|r| json!({ "name": r.name, "why": r.why, "received_as": r.received_as, "error": r.error, "envelope": r.envelope }))
        .collect();
    let file = golden("refused", &Value::Array(made));
    for vector in file.as_array().expect("a list") {
        let text = |field: &str| vector[field].as_str().expect("text");
        assert_eq!(refusal(text("received_as"), &vector["envelope"]), text("error"), "{}", text("name"));
    }
}

/// The weak keys are refused because they are weak: the equation holds for them, as `verify` without `_strict` shows.
#[test]
fn weak_keys_would_pass_a_verifier_that_is_not_strict() {
    for weak in [point(1, 0), point(0xee, 0xff)] {
        let (key, signature) =
            (ed25519_dalek::VerifyingKey::from_bytes(&weak), ed25519_dalek::Signature::from_bytes(&neutral_signature()));
        let key = key.expect("a point");
        assert!(ed25519_dalek::Verifier::verify(&key, b"anything", &signature).is_ok());
        assert!(key.verify_strict(b"anything", &signature).is_err());
    }
}

/// Too large for a file of its own: an offer with as many spaces behind it as make it one byte too long; with one less it is an offer.
#[test]
fn a_payload_has_a_largest_size() {
    let padded = |bytes: usize| resigned(|text| text.to_owned() + &" ".repeat(bytes - text.len()));
    assert!(verify(Offer::TYPE, &padded(PAYLOAD_BYTES_MAX)).is_ok());
    assert_eq!(verify(Offer::TYPE, &padded(PAYLOAD_BYTES_MAX + 1)), Err(Error::TooLong { bytes: PAYLOAD_BYTES_MAX + 1 }));
}

/// Sealing draws randomness, so the file is written once and only opened from then on.
#[test]
fn the_sealed_vector_opens_for_its_recipients_alone() {
    let recipients = [RIO, PATRAS].map(|byte| UnsealingKey::derive(&key(byte).secret()));
    if std::env::var_os("UPDATE_GOLDEN").is_some() && !path("sealed").exists() {
        let sealed = Sealed::seal(SECRET.as_bytes(), &recipients.each_ref().map(UnsealingKey::public), PURPOSE).expect("small");
        let secrets = [RIO, PATRAS].map(|byte| hex::encode([byte; 32]));
        let vector = json!({ "purpose": PURPOSE, "secret": SECRET, "recipient_node_secrets": secrets, "sealed": sealed });
        fs::create_dir_all(path("sealed").parent().expect("a directory")).expect("directory");
        fs::write(path("sealed"), render(&vector)).expect("file");
    }
    let vector: Value =
        serde_json::from_str(&fs::read_to_string(path("sealed")).expect("UPDATE_GOLDEN=1 writes it")).expect("JSON");
    let sealed: Sealed = serde_json::from_value(vector["sealed"].clone()).expect("sealed");
    for recipient in &recipients {
        assert_eq!(recipient.open(&sealed, PURPOSE).as_deref(), Ok(SECRET.as_bytes()));
        assert!(recipient.open(&sealed, "another purpose").is_err());
    }
    assert!(UnsealingKey::derive(&key(CLOUD).secret()).open(&sealed, PURPOSE).is_err());
    for position in 0..sealed.recipients[0].ciphertext.len() {
        let mut changed = sealed.clone();
        changed.recipients[0].ciphertext[position] ^= 0x80;
        assert!(recipients[0].open(&changed, PURPOSE).is_err(), "byte {position}");
    }
}
