//! The resources of the reference implementation: what is shown is true, what is posted is checked, nothing pretends to be done.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use common::{GROUP, Node, Wishes, id, refused, write_image};
use contracts::contract::{Outcome, State};
use contracts::ids::GroupId;
use edge_node::api;
use edge_node::timeline::Event;
use kit::clock::Clock;
use peering::in_process::Network;
use serde_json::{Value, json};

const OWN_IMAGES: &str = "/orchestrator/service_customer/image/status";
const OTHERS_IMAGES: &str = "/orchestrator/service_provider/image/status";
const OTHERS_CONTRACTS: &str = "/orchestrator/service_provider/contract";
const OWN_CONTRACTS: &str = "/orchestrator/service_customer/contract/testing";
const IMAGE: &str = "/filecoin_interface/orchestrator/image";

async fn node(wishes: Wishes) -> Node {
    Node::start(&Network::new(Clock::system()), wishes).await
}

fn absent_cid() -> String {
    format!("bafkrei{}", "a".repeat(52))
}

fn incoming(node: &Node, name: &str) -> std::path::PathBuf {
    let directory = node.directory.path().join(api::INCOMING_DIRECTORY);
    std::fs::create_dir_all(&directory).unwrap();
    directory.join(name)
}

#[tokio::test]
async fn own_images_are_stored_then_committed() {
    let node = node(Wishes { service: true, ..Wishes::default() }).await;
    let (_, cid, image_id) = &node.image;
    let images: Value = node.get(OWN_IMAGES).await;
    assert_eq!(
        (&images[0]["imageId"], &images[0]["imageHash"], &images[0]["status"]),
        (&json!(image_id), &json!(cid), &json!("STORED"))
    );
    let report = |status: &str, hash: &str| json!({ "imageId": image_id, "imageHash": hash, "status": status });
    let untrue = node.post_refusal(OWN_IMAGES, &report("COMMITTED", cid)).await;
    assert_eq!(untrue, refused(409, "conflict", Some("status")), "no contract yet");

    let contract = node.add_contract(1, 2, GROUP, (cid, image_id), State::Preparing).await;
    let images: Value = node.get(OWN_IMAGES).await;
    assert_eq!((images.as_array().unwrap().len(), &images[0]["status"]), (1, &json!("COMMITTED")));
    assert_eq!((&images[0]["contracts"], &images[0]["reportedStatus"]), (&json!([contract]), &Value::Null));
    let (status, view) = node.post(OWN_IMAGES, &report("COMMITTED", cid)).await;
    assert_eq!((status, &view["reportedStatus"]), (StatusCode::OK, &json!("COMMITTED")));
    assert_eq!(
        node.post_refusal(OWN_IMAGES, &report("STORED", &absent_cid())).await,
        refused(409, "conflict", Some("imageHash"))
    );
    assert_eq!(node.post_refusal(OWN_IMAGES, &report("DOWNLOADED", cid)).await, refused(400, "invalid-input", Some("status")));
    assert_eq!(node.post_refusal(OWN_IMAGES, &report("DONE", cid)).await, refused(400, "malformed-body", None));
    let other = json!({ "imageId": format!("sha256:{}", "0".repeat(64)), "imageHash": cid, "status": "STORED" });
    assert_eq!(node.post_refusal(OWN_IMAGES, &other).await, refused(404, "not-found", Some("imageId")));

    // The report is on disk: a router of the same state directory has it.
    let again = Node { router: api::router(node.context.clone()), ..node };
    let images: Value = again.get(OWN_IMAGES).await;
    assert_eq!(images[0]["reportedStatus"], "COMMITTED");
}

#[tokio::test]
async fn images_of_others_are_downloaded_when_they_are_complete() {
    let node = node(Wishes::default()).await;
    let (_, cid, image_id) = &node.image;
    let other_id = format!("sha256:{}", "1".repeat(64));
    node.add_contract(2, 1, GROUP, (cid, image_id), State::Standby { activations: 0 }).await;
    node.add_contract(5, 1, GroupId::from_bytes([8; 16]), (&absent_cid(), &other_id), State::Preparing).await;
    let images: Vec<Value> = node.get(OTHERS_IMAGES).await;
    let of = |id: &str| images.iter().find(|image| image["imageId"] == id).unwrap();
    assert_eq!((&of(image_id)["status"], &of(image_id)["missingBlocks"]), (&json!("DOWNLOADED"), &json!(0)));
    assert_eq!((&of(&other_id)["status"], &of(&other_id)["missingBlocks"]), (&Value::Null, &json!(1)));
    let report = |id: &str, status: &str| json!({ "imageId": id, "status": status });
    assert_eq!(node.post(OTHERS_IMAGES, &report(image_id, "DOWNLOADED")).await.0, StatusCode::OK);
    assert_eq!(
        node.post_refusal(OTHERS_IMAGES, &report(&other_id, "DOWNLOADED")).await,
        refused(409, "conflict", Some("status"))
    );
    assert_eq!(
        node.post_refusal(OTHERS_IMAGES, &report(image_id, "STORED")).await,
        refused(400, "invalid-input", Some("status"))
    );
    assert_eq!(node.get::<Vec<Value>>(OWN_IMAGES).await, Vec::<Value>::new(), "others' images are not own ones");
}

#[tokio::test]
async fn contracts_are_shown_on_both_sides_and_made_by_nobody() {
    let node = node(Wishes::default()).await;
    let (_, cid, image_id) = &node.image;
    let insured = node.add_contract(1, 2, GROUP, (cid, image_id), State::Standby { activations: 0 }).await;
    let insuring = node.add_contract(2, 1, GroupId::from_bytes([8; 16]), (cid, image_id), State::Agreed).await;
    let own: Vec<Value> = node.get(OWN_CONTRACTS).await;
    assert_eq!(own.len(), 1);
    assert_eq!((&own[0]["contractId"], &own[0]["edgeId"], &own[0]["duration"]), (&json!(insured), &json!(id(2)), &json!(30)));
    let others: Vec<Value> = node.get(OTHERS_CONTRACTS).await;
    assert_eq!(others.len(), 1);
    let shown = &others[0];
    assert_eq!((&shown["contractId"], &shown["edgeId"], &shown["state"]), (&json!(insuring), &json!(id(2)), &json!("agreed")));
    let config = &shown["config"];
    assert_eq!(
        (&config["serviceName"], &config["activationEvent"], &config["event"]["interval"]),
        (&json!("lora"), &json!("offline"), &json!("500 ms"))
    );

    let told = |edge: Value, config: &Value| json!({ "edgeId": edge, "imageName": "lora", "imageHash": cid, "config": config });
    let (status, found) = node.post(OTHERS_CONTRACTS, &told(json!(id(2)), config)).await;
    assert_eq!((status, &found), (StatusCode::OK, shown));
    let stranger = node.post_refusal(OTHERS_CONTRACTS, &told(json!(id(5)), config)).await;
    assert_eq!(stranger, refused(409, "contract-not-signed", None));
    let changed = node.post_refusal(OTHERS_CONTRACTS, &told(json!(id(2)), &json!({ "activationEvent": "always" }))).await;
    assert_eq!(changed, refused(409, "conflict", Some("config.activationEvent")));
    assert_eq!(
        node.post_refusal(OTHERS_CONTRACTS, &told(json!("edge"), config)).await,
        refused(400, "invalid-input", Some("edgeId"))
    );
    node.core.agreements.set_state(insuring, State::Ended { outcome: Outcome::Cancelled }).await.unwrap();
    assert_eq!(node.post_refusal(OTHERS_CONTRACTS, &told(json!(id(2)), config)).await, refused(409, "contract-not-signed", None));
    assert_eq!(node.core.agreements.list().len(), 2, "nothing was made");
}

#[tokio::test]
async fn a_file_is_stored_and_comes_back_byte_for_byte() {
    let node = node(Wishes::default()).await;
    let path = incoming(&node, "app.tar");
    let image_id = write_image(&path, "an application");
    let wish = |name: &str, file: &str| json!({ "imageName": name, "storageDuration": 30, "fileName": file });
    let (status, stored) = node.post(IMAGE, &wish("app", "app.tar")).await;
    assert_eq!(status, StatusCode::CREATED, "{stored}");
    assert_eq!(
        (&stored["imageId"], &stored["status"], &stored["archive"]),
        (&json!(image_id), &json!("STORED"), &json!("not-configured"))
    );
    let (status, again) = node.post(IMAGE, &wish("app", "app.tar")).await;
    assert_eq!((status, &again), (StatusCode::CREATED, &stored), "repeating it changes nothing");
    let cid = stored["imageHash"].as_str().unwrap();
    let request = Request::get(format!("{IMAGE}?imageName=app&imageHash={cid}")).body(Body::empty()).unwrap();
    let (status, headers, body) = node.call(request).await;
    assert_eq!((status, body), (StatusCode::OK, std::fs::read(&path).unwrap()));
    assert_eq!(headers["content-disposition"], "attachment; filename=\"app.tar\"");
    let (kept, _) = node.core.timeline.follow(0);
    assert!(kept.iter().any(|e| matches!(&e.event, Event::ContentStored { cid: said, .. } if said == cid)));
    let own: Vec<Value> = node.get(OWN_IMAGES).await;
    assert!(own.iter().any(|image| image["imageName"] == "app" && image["status"] == "STORED"), "{own:?}");

    // The storage network's side reports on it.
    let report = |status: &str| json!({ "imageid": image_id, "imageHash": cid, "status": status });
    assert_eq!(node.post("/filecoin_interface/backend/image", &report("READY2DOWNLOAD")).await.0, StatusCode::OK);
    let deal = node.post_refusal("/filecoin_interface/backend/image", &report("COMMITTED")).await;
    assert_eq!(deal, refused(501, "not-configured", None), "there is no archive that could have committed");

    // Another image of the same name takes the place of the first.
    write_image(&path, "the application, improved");
    let (_, newer) = node.post(IMAGE, &wish("app", "app.tar")).await;
    assert_ne!(newer["imageHash"], stored["imageHash"]);
    let pins: Vec<String> =
        node.core.content.pins().into_iter().filter(|p| p.label == "operator image app").map(|p| p.cid.to_string()).collect();
    assert_eq!(pins, [newer["imageHash"].as_str().unwrap()]);
}

#[tokio::test]
async fn only_image_files_in_the_directory_are_taken() {
    let node = node(Wishes::default()).await;
    std::fs::write(incoming(&node, "text.tar"), "not a tar at all").unwrap();
    std::os::unix::fs::symlink(node.directory.path().join("node.key"), incoming(&node, "key.tar")).unwrap();
    let wish = |name: &str, file: &str, days: u32| json!({ "imageName": name, "storageDuration": days, "fileName": file });
    for (file, expected) in [
        ("none.tar", refused(404, "not-found", Some("fileName"))),
        ("text.tar", refused(400, "invalid-input", Some("fileName"))),
        ("key.tar", refused(400, "invalid-input", Some("fileName"))),
        ("../node.key", refused(400, "invalid-input", Some("fileName"))),
        ("/etc/passwd", refused(400, "invalid-input", Some("fileName"))),
        ("..", refused(400, "invalid-input", Some("fileName"))),
        ("", refused(400, "invalid-input", Some("fileName"))),
    ] {
        assert_eq!(node.post_refusal(IMAGE, &wish("app", file, 1)).await, expected, "{file}");
    }
    assert_eq!(node.post_refusal(IMAGE, &wish("a b", "text.tar", 1)).await, refused(400, "invalid-input", Some("imageName")));
    assert_eq!(
        node.post_refusal(IMAGE, &wish("app", "text.tar", 0)).await,
        refused(400, "invalid-input", Some("storageDuration"))
    );
    assert_eq!(node.core.content.pins().len(), 1, "nothing was pinned");

    let wanted = |cid: &str, miner: &str| format!("{IMAGE}?imageName=app&imageHash={cid}{miner}");
    assert_eq!(node.get_refusal(&wanted(&absent_cid(), "")).await, refused(404, "not-found", Some("imageHash")));
    assert_eq!(node.get_refusal(&wanted(&absent_cid(), "&minerAddress=t01000")).await, refused(501, "not-configured", None));
    assert_eq!(node.get_refusal(&wanted("what", "")).await, refused(400, "invalid-input", Some("imageHash")));
    assert_eq!(node.get_refusal(IMAGE).await, refused(400, "malformed-query", None));
}

#[tokio::test]
async fn a_wish_for_insurance_stores_the_image_and_leaves_the_rest_to_the_market() {
    let plain = node(Wishes { service: true, ..Wishes::default() }).await;
    let wish = |days: u32, file: &str, name: &str| json!({ "imageName": name, "fileName": file, "duration": days });
    assert_eq!(plain.post_refusal(OWN_CONTRACTS, &wish(30, "lora.tar", "lora")).await, refused(501, "not-configured", None));
    let policy = include_str!("common/policy.toml").to_owned();
    let configuration = format!(
        "marketplace = {{ url = \"http://127.0.0.1:9\" }}\narbitrator = {{ node = \"{}\", url = \"http://127.0.0.1:9\" }}",
        id(3)
    );
    let node = node(Wishes { service: true, policy: Some(policy), configuration }).await;
    std::fs::copy(&node.image.0, incoming(&node, "lora.tar")).unwrap();
    write_image(&incoming(&node, "other.tar"), "something else");
    assert_eq!(
        node.post_refusal(OWN_CONTRACTS, &wish(30, "lora.tar", "other")).await,
        refused(501, "not-configured", Some("imageName"))
    );
    assert_eq!(
        node.post_refusal(OWN_CONTRACTS, &wish(7, "lora.tar", "lora")).await,
        refused(400, "invalid-input", Some("duration"))
    );
    assert_eq!(
        node.post_refusal(OWN_CONTRACTS, &wish(30, "other.tar", "lora")).await,
        refused(409, "conflict", Some("fileName"))
    );
    assert_eq!(node.core.content.pins().len(), 1, "another image than the service's is not even stored");
    let (status, seeking) = node.post(OWN_CONTRACTS, &wish(30, "lora.tar", "lora")).await;
    assert_eq!((status, &seeking["status"], &seeking["contracts"]), (StatusCode::ACCEPTED, &json!("STORED"), &json!([])));
    let contract = node.add_contract(1, 2, GROUP, (&node.image.1, &node.image.2), State::Standby { activations: 0 }).await;
    let (status, found) = node.post(OWN_CONTRACTS, &wish(30, "lora.tar", "lora")).await;
    assert_eq!(
        (status, &found["status"], &found["contracts"][0]["contractId"]),
        (StatusCode::OK, &json!("COMMITTED"), &json!(contract))
    );
}

#[tokio::test]
async fn errors_of_the_storage_network_are_noted_and_told() {
    let node = node(Wishes::default()).await;
    let error = json!({ "errorObject": { "deal": 1 }, "code": 500, "message": "the miner refused" });
    assert_eq!(node.post("/filecoin_interface/backend/error", &error).await.0, StatusCode::NO_CONTENT);
    let (kept, _) = node.core.timeline.follow(0);
    assert!(
        kept.iter()
            .any(|e| matches!(&e.event, Event::Alarm { what } if what.contains("500") && what.contains("the miner refused")))
    );
    let health: Value = node.get("/filecoin_interface/health").await;
    assert_eq!((&health["status"], &health["archive"], &health["errors"]), (&json!("UP"), &json!("not-configured"), &json!(1)));
    let long = json!({ "code": 1, "message": "x".repeat(1_025) });
    assert_eq!(
        node.post_refusal("/filecoin_interface/backend/error", &long).await,
        refused(400, "invalid-input", Some("message"))
    );
    assert_eq!(
        node.post_refusal("/filecoin_interface/backend/error", &json!({ "code": "x" })).await,
        refused(400, "malformed-body", None)
    );
}
