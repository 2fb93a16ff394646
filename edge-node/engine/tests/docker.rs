//! The Docker engine against a real one: `ANTIRIO_DOCKER_SOCKET`, or `/var/run/docker.sock`.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use engine::docker::{DEFAULT_SOCKET, DockerConfig, DockerEngine};
use engine::image::ImageLimits;
use engine::{
    Config, ContainerName, ContainerState, Engine, Error, Event, ImageId, ImageSource, Kind, Network, Selection, select,
};
use futures_util::{StreamExt, TryStreamExt};
use support::{Node, PATIENCE, pack_tenant, spec};

fn name(text: &str) -> ContainerName {
    text.parse().expect("name")
}

fn socket() -> PathBuf {
    std::env::var_os("ANTIRIO_DOCKER_SOCKET").map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from)
}

async fn connect(prefix: &str, scratch: &std::path::Path) -> Result<DockerEngine, Error> {
    let prefix = prefix.parse().expect("prefix");
    DockerEngine::connect(DockerConfig {
        prefix,
        socket: socket(),
        scratch_dir: scratch.into(),
        image_limits: ImageLimits::default(),
    })
    .await
}

async fn state(engine: &DockerEngine, container: &str) -> Option<ContainerState> {
    engine.list().await.expect("list").into_iter().find(|status| status.name == name(container)).map(|status| status.state)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_of_a_container() {
    let directory = tempfile::tempdir().expect("directory");
    let prefix = format!("antirio-test-{}", std::process::id());
    let engine = match connect(&prefix, directory.path()).await {
        Ok(engine) => engine,
        Err(error) => {
            println!("SKIPPED: {error}");
            return;
        }
    };
    println!("  {:?}", engine.probe().await.expect("probe"));
    let (tar, packed) = pack_tenant(directory.path());
    let file = tokio::fs::File::open(&tar).await.expect("open");
    assert!(!engine.has_image(&packed.image).await.expect("has"));
    let other = ImageId::from_bytes([3; 32]);
    assert!(matches!(engine.load_image(ImageSource::Path(tar.clone()), Some(&other)).await, Err(Error::Image(_))));
    let loaded = engine.load_image(ImageSource::Reader(Box::new(file)), Some(&packed.image)).await.expect("load");
    assert_eq!(loaded, packed.image, "the engine computes the same id");
    assert_eq!(engine.load_image(ImageSource::Path(tar), None).await.expect("again"), packed.image);
    assert!(engine.has_image(&packed.image).await.expect("has"));

    saved_by_docker(&directory.path().join("saved"), packed.image).await;

    let node = Node::new(directory.path(), "docker");
    let mut events = engine.events();
    prepare(&engine, &node, packed.image).await;
    // another node's engine neither sees nor touches it
    let foreign = connect(&format!("{prefix}-x"), directory.path()).await.expect("connect");
    assert_eq!(foreign.list().await.expect("list"), []);
    assert!(!foreign.remove(&name("one")).await.expect("remove"));
    run(&engine, &node).await;
    let one = name("one");
    let expected = [
        Event::Created { name: one.clone() },
        Event::Started { name: one.clone() },
        Event::Exited { name: one.clone(), code: Some(7) },
        Event::Removed { name: one },
    ];
    let seen: Vec<_> = tokio::time::timeout(PATIENCE, events.by_ref().take(4).collect()).await.expect("events");
    assert_eq!(seen, expected);

    ends_and_bridges(&engine, &node, packed.image).await;
    assert!(engine.remove_image(&packed.image).await.expect("remove image"));
    assert!(!engine.has_image(&packed.image).await.expect("has"));
    assert_eq!(engine.list().await.expect("list"), []);
}

async fn prepare(engine: &DockerEngine, node: &Node, image: ImageId) {
    let wanted = spec("one", image, &node.directory);
    assert!(matches!(
        engine.create(&spec("two", ImageId::from_bytes([3; 32]), &node.directory)).await,
        Err(Error::UnknownImage(_))
    ));
    engine.create(&wanted).await.expect("create");
    assert!(matches!(engine.create(&wanted).await, Err(Error::Exists(_))));
    let created = engine.list().await.expect("list").remove(0);
    assert_eq!(
        (created.state, created.pid, &created.labels, created.image),
        (ContainerState::Created, None, &wanted.labels, image)
    );
    assert!(matches!(engine.remove_image(&image).await, Err(Error::ImageInUse { .. })));
    assert_eq!(engine.stop(&name("one"), PATIENCE).await.expect("stop"), ContainerState::Created);
}

async fn run(engine: &DockerEngine, node: &Node) {
    engine.start(&name("one")).await.expect("start");
    let mut tenant = node.accept().await;
    assert_eq!(tenant.hello, "hello one");
    assert!(matches!(engine.start(&name("one")).await, Err(Error::NotCreated { state: ContainerState::Running, .. })));
    for (command, expected) in [
        ("pid", "1"),
        ("args", "from-image"),
        ("cwd", "/etc"),
        ("interfaces", "lo"),
        ("status Uid", "65534\t65534\t65534\t65534"),
        ("status CapEff", "0000000000000000"),
        ("status CapBnd", "0000000000000000"),
        ("status NoNewPrivs", "1"),
        ("env FROM_IMAGE", "yes"),
        ("env BOTH", "spec"),
        ("write /x", "30"),
        ("write /tmp/x", "ok"),
        ("threads 100", "15"),
    ] {
        assert_eq!(tenant.ask(command).await, expected, "{command}");
    }
    let stats = engine.stats(&name("one")).await.expect("stats");
    assert!(stats.memory_bytes.is_some_and(|bytes| bytes > 0) && stats.pids == Some(16), "{stats:?}");
    let waiting = tokio::spawn({
        let engine = engine.clone();
        async move { engine.wait(&name("one")).await }
    });
    tenant.ask("exit 7").await;
    assert_eq!(waiting.await.expect("task").expect("wait"), Some(7));
    assert_eq!(state(engine, "one").await, Some(ContainerState::Exited { code: Some(7) }));
    assert!(matches!(engine.start(&name("one")).await, Err(Error::NotCreated { .. })), "as with the embedded engine");
    assert_eq!(engine.logs(&name("one"), 1024).await.expect("logs"), b"tenant begins\n");
    assert!(engine.remove(&name("one")).await.expect("remove"));
    assert!(!engine.remove(&name("one")).await.expect("remove again"));
}

/// What this engine saves is an image that the embedded one loads, under the same id.
async fn saved_by_docker(directory: &std::path::Path, image: ImageId) {
    let socket = socket();
    let api =
        bollard::Docker::connect_with_unix(socket.to_str().expect("path"), 60, bollard::API_DEFAULT_VERSION).expect("connect");
    let api = api.negotiate_version().await.expect("negotiate");
    let saved: Vec<bytes::Bytes> = api.export_image(&image.to_string()).try_collect().await.expect("save");
    let store = engine::image::Store::open(directory, ImageLimits::default()).expect("store");
    let tar = directory.join("saved.tar");
    std::fs::write(&tar, saved.concat()).expect("write");
    assert_eq!(store.load(&tar, Some(&image)).expect("load"), image);
    assert!(store.rootfs(&image).join("bin/tenant").is_file());
}

async fn ends_and_bridges(engine: &DockerEngine, node: &Node, image: ImageId) {
    engine.create(&spec("polite", image, &node.directory)).await.expect("create");
    engine.start(&name("polite")).await.expect("start");
    let mut polite = node.accept().await;
    assert_eq!(polite.ask("polite").await, "ok");
    assert_eq!(engine.stop(&name("polite"), PATIENCE).await.expect("stop"), ContainerState::Exited { code: Some(3) });
    assert!(engine.remove(&name("polite")).await.expect("remove"));
    engine.create(&spec("stubborn", image, &node.directory)).await.expect("create");
    engine.start(&name("stubborn")).await.expect("start");
    let _tenant = node.accept().await;
    let ended = engine.stop(&name("stubborn"), Duration::from_millis(200)).await.expect("stop");
    assert_eq!(ended, ContainerState::Exited { code: Some(137) });
    // a running one is removed at once
    engine.create(&spec("running", image, &node.directory)).await.expect("create");
    engine.start(&name("running")).await.expect("start");
    let _other = node.accept().await;
    assert!(engine.remove(&name("running")).await.expect("remove"));
    assert_eq!(engine.recover().await.expect("recover").adopted, [name("stubborn")]);
    assert!(engine.remove(&name("stubborn")).await.expect("remove"));
    let mut bridged = spec("bridged", image, &node.directory);
    bridged.network = Network::Bridge;
    engine.create(&bridged).await.expect("a bridge is possible here");
    engine.remove(&name("bridged")).await.expect("remove");
}

#[tokio::test]
async fn nothing_listens() {
    let directory = tempfile::tempdir().expect("directory");
    let mut config =
        Config::new("antirio-none".parse().expect("prefix"), directory.path().join("state"), directory.path().join("images"));
    config.docker_socket = directory.path().join("no.sock");
    let error = select(Selection::Docker, &config).await.expect_err("nothing there");
    assert!(matches!(&error, Error::Unavailable { kind: Kind::Docker, .. }), "{error}");
    assert!(error.to_string().contains("no.sock"), "{error}");
    // a socket that nobody answers at
    drop(std::os::unix::net::UnixListener::bind(&config.docker_socket).expect("bind"));
    assert!(matches!(select(Selection::Docker, &config).await, Err(Error::Unavailable { .. })));
    match select(Selection::Auto, &config).await {
        Ok(selected) => assert_eq!(selected.engine.kind(), Kind::Embedded),
        Err(error) => {
            // the machine cannot run the embedded engine either: both reasons are told
            assert!(error.to_string().contains("no.sock"), "{error}");
            assert!(error.to_string().contains("; "), "{error}");
        }
    }
}
