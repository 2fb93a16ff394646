//! The embedded engine with real namespaces, control groups and processes. Needs root. Without the standard harness, because this
//! program is its own helper: `main` must come before any thread.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use engine::embedded::{EmbeddedConfig, EmbeddedEngine, HELPER_ARGUMENT, LOG_BYTES_MAX, helper_main};
use engine::{ContainerName, ContainerState, Engine, Error, Event, ImageId, ImageSource, Network};
use futures_util::StreamExt;
use support::{Node, PATIENCE, pack_tenant, spec};

/// First argument of a process that plays a node which dies.
const NODE_ARGUMENT: &str = "__node";

/// What the tests share: one image, one directory each.
struct World {
    directory: PathBuf,
    tar: PathBuf,
    image: ImageId,
}

impl World {
    fn config(&self, test: &str) -> EmbeddedConfig {
        let prefix = format!("antirio-test-{}-{test}", std::process::id()).parse().expect("prefix");
        EmbeddedConfig::new(prefix, self.directory.join(test), self.directory.join("images"))
    }

    async fn engine(&self, test: &str) -> EmbeddedEngine {
        let engine = EmbeddedEngine::open(self.config(test)).expect("open");
        engine.recover().await.expect("recover");
        let loaded = engine.load_image(ImageSource::Path(self.tar.clone()), Some(&self.image)).await.expect("load");
        assert_eq!(loaded, self.image);
        engine
    }

    fn node(&self, name: &str) -> Node {
        Node::new(&self.directory, name)
    }
}

fn name(text: &str) -> ContainerName {
    text.parse().expect("name")
}

async fn state(engine: &EmbeddedEngine, container: &str) -> Option<ContainerState> {
    engine.list().await.expect("list").into_iter().find(|status| status.name == name(container)).map(|status| status.state)
}

/// Whatever of a test's containers is left: processes, control groups, mounts, directories.
fn rest(directory: &Path, test: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let bundles = directory.join(test).join("bundles").display().to_string();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        if let Ok(line) = std::fs::read(entry.path().join("cmdline"))
            && String::from_utf8_lossy(&line).contains(&bundles)
        {
            found.insert(format!("process {}", entry.path().display()));
        }
    }
    let prefix = format!("antirio-test-{}-{test}", std::process::id());
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("cgroup").flatten() {
        if hierarchy.path().join(&prefix).exists() {
            found.insert(format!("control group {}", hierarchy.path().join(&prefix).display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    found.extend(mounts.lines().filter(|line| line.contains(&bundles)).map(|line| format!("mount {line}")));
    for part in ["bundles", "containers"] {
        for entry in std::fs::read_dir(directory.join(test).join(part)).expect("state").flatten() {
            found.insert(format!("directory {}", entry.path().display()));
        }
    }
    found
}

/// Polls a condition until it holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Children of this process that nobody reaped.
fn zombies() -> Vec<String> {
    let own = format!("PPid:\t{}", std::process::id());
    let statuses = std::fs::read_dir("/proc")
        .expect("proc")
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    statuses.filter(|status| status.contains("\nState:\tZ") && status.contains(&own)).collect()
}

async fn isolation(world: &World) {
    let engine = world.engine("isolation").await;
    let node = world.node("isolation");
    let mut wanted = spec("one", world.image, &node.directory);
    wanted.env.insert("SECRET".into(), "s3".into());
    engine.create(&wanted).await.expect("create");
    let created = engine.list().await.expect("list").remove(0);
    assert_eq!((created.state, &created.labels, created.image), (ContainerState::Created, &wanted.labels, world.image));
    let pid = created.pid.expect("a live process");
    let waiting = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    assert!(
        waiting.contains("\nSeccomp:\t2\n") && waiting.contains("\nCapEff:\t0000000000000000\n"),
        "prepared to the end: {waiting}"
    );
    assert!(matches!(engine.create(&wanted).await, Err(Error::Exists(_))), "the name is taken");
    assert!(matches!(engine.remove_image(&world.image).await, Err(Error::ImageInUse { .. })));
    // a prepared container stays prepared
    assert_eq!(engine.stop(&name("one"), PATIENCE).await.expect("stop"), ContainerState::Created);

    engine.start(&name("one")).await.expect("start");
    let mut tenant = node.accept().await;
    assert_eq!(tenant.hello, "hello one");
    assert_eq!(state(&engine, "one").await, Some(ContainerState::Running));
    assert!(matches!(engine.start(&name("one")).await, Err(Error::NotCreated { state: ContainerState::Running, .. })));
    for (command, expected) in [
        ("pid", "1"),
        ("args", "from-image"),
        ("cwd", "/etc"),
        ("hostname", "one"),
        ("interfaces", "lo"),
        ("status Uid", "65534\t65534\t65534\t65534"),
        ("status Gid", "65534\t65534\t65534\t65534"),
        ("status Groups", ""),
        ("status CapInh", "0000000000000000"),
        ("status CapPrm", "0000000000000000"),
        ("status CapEff", "0000000000000000"),
        ("status CapBnd", "0000000000000000"),
        ("status CapAmb", "0000000000000000"),
        ("status NoNewPrivs", "1"),
        ("status Seccomp", "2"),
        ("status Seccomp_filters", "2"),
        ("env FROM_IMAGE", "yes"),
        ("env BOTH", "spec"),
        ("env SECRET", "s3"),
        ("env CARGO_MANIFEST_DIR", "none"),
        ("read /etc/os-release", "ok"),
        // 30: read-only file system; 13: permission denied; 2: no such file
        ("write /x", "30"),
        ("write /run/antirio/x", "30"),
        ("read /sys/kernel/notes", "2"),
        ("write /tmp/x", "ok"),
        // stdin, stdout, stderr, the socket twice, and the list itself
        ("descriptors", "6"),
    ] {
        assert_eq!(tenant.ask(command).await, expected, "{command}");
    }
    let answer = tenant.ask("write /proc/sys/kernel/core_pattern").await;
    assert!(answer == libc::EACCES.to_string() || answer == libc::EROFS.to_string(), "{answer}");
    // SIGXFSZ for the log's sake, SIGPIPE by the tenant's own runtime; 32 and 33 belong to the C library and may be inherited
    let ignored = u64::from_str_radix(&tenant.ask("status SigIgn").await, 16).expect("mask") & !(0b11 << 31);
    assert_eq!(ignored, 1 << (libc::SIGXFSZ - 1) | 1 << (libc::SIGPIPE - 1), "{ignored:x}");
    assert!(engine.stats(&name("one")).await.expect("stats").memory_bytes.is_some_and(|bytes| bytes > 0));
    let one = name("one");
    let mut waiting = Box::pin(engine.wait(&one));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(tenant.ask("exit 7").await, "");
    assert_eq!(waiting.await.expect("wait"), Some(7));
    assert_eq!(state(&engine, "one").await, Some(ContainerState::Exited { code: Some(7) }));
    assert_eq!(engine.logs(&name("one"), 1024).await.expect("logs"), b"tenant begins\n");
    assert!(engine.remove(&name("one")).await.expect("remove"));
    assert!(!engine.remove(&name("one")).await.expect("remove again"));
    assert!(matches!(engine.start(&name("one")).await, Err(Error::UnknownContainer(_))));
}

async fn system_calls(world: &World) {
    let engine = world.engine("calls").await;
    let node = world.node("calls");
    engine.create(&spec("calls", world.image, &node.directory)).await.expect("create");
    engine.start(&name("calls")).await.expect("start");
    let mut tenant = node.accept().await;
    let flags = |flags: i32| i64::from(flags | libc::SIGCHLD);
    let refused: &[(&str, &[i64])] = &[
        ("mount", &[libc::SYS_mount]),
        ("umount2", &[libc::SYS_umount2]),
        ("fsopen", &[libc::SYS_fsopen]),
        ("move_mount", &[libc::SYS_move_mount]),
        ("pivot_root", &[libc::SYS_pivot_root]),
        ("chroot", &[libc::SYS_chroot]),
        ("ptrace", &[libc::SYS_ptrace]),
        ("process_vm_readv", &[libc::SYS_process_vm_readv]),
        ("bpf", &[libc::SYS_bpf]),
        ("keyctl", &[libc::SYS_keyctl]),
        ("add_key", &[libc::SYS_add_key]),
        ("unshare user", &[libc::SYS_unshare, libc::CLONE_NEWUSER as i64]),
        ("setns", &[libc::SYS_setns]),
        ("kexec_load", &[libc::SYS_kexec_load]),
        ("init_module", &[libc::SYS_init_module]),
        ("finit_module", &[libc::SYS_finit_module]),
        ("delete_module", &[libc::SYS_delete_module]),
        ("reboot", &[libc::SYS_reboot]),
        ("swapon", &[libc::SYS_swapon]),
        ("perf_event_open", &[libc::SYS_perf_event_open]),
        ("userfaultfd", &[libc::SYS_userfaultfd]),
        ("io_uring_setup", &[libc::SYS_io_uring_setup]),
        ("open_by_handle_at", &[libc::SYS_open_by_handle_at]),
        ("sethostname", &[libc::SYS_sethostname]),
        ("clone new user", &[libc::SYS_clone, flags(libc::CLONE_NEWUSER)]),
        ("clone new net and pid", &[libc::SYS_clone, flags(libc::CLONE_NEWNET | libc::CLONE_NEWPID)]),
    ];
    for (what, call) in refused {
        let words: Vec<_> = call.iter().map(ToString::to_string).collect();
        assert_eq!(tenant.ask(&format!("try {}", words.join(" "))).await, libc::EPERM.to_string(), "{what}");
    }
    let mut unknown: Vec<(&str, Vec<i64>)> = vec![
        ("clone3", vec![libc::SYS_clone3]),
        ("a call that no kernel has", vec![100_000]),
        ("socket of the hypervisor", vec![libc::SYS_socket, libc::AF_VSOCK.into(), libc::SOCK_STREAM.into()]),
        ("packet socket", vec![libc::SYS_socket, libc::AF_PACKET.into(), libc::SOCK_RAW.into()]),
        ("crypto socket", vec![libc::SYS_socket, libc::AF_ALG.into(), libc::SOCK_SEQPACKET.into()]),
        ("another personality", vec![libc::SYS_personality, 0x0008]),
    ];
    if cfg!(target_arch = "x86_64") {
        // the x32 form of a call on the list of allowed ones
        unknown.push(("x32 getpid", vec![libc::SYS_getpid | 0x4000_0000]));
    }
    for (what, call) in unknown {
        let words: Vec<_> = call.iter().map(ToString::to_string).collect();
        assert_eq!(tenant.ask(&format!("try {}", words.join(" "))).await, libc::ENOSYS.to_string(), "{what}");
    }
    // what a program needs still works, and threads (clone3 answered by ENOSYS, then clone) do
    for call in [vec![libc::SYS_getpid], vec![libc::SYS_socket, libc::AF_INET.into(), libc::SOCK_STREAM.into()]] {
        let words: Vec<_> = call.iter().map(ToString::to_string).collect();
        assert_eq!(tenant.ask(&format!("try {}", words.join(" "))).await, "ok");
    }
    assert_eq!(tenant.ask("threads 3").await, "3");
    engine.remove(&name("calls")).await.expect("remove");
}

async fn limits(world: &World) {
    let engine = world.engine("limits").await;
    let support = engine.probe().await.expect("probe").limits;
    let node = world.node("limits");
    let mut wanted = spec("limits", world.image, &node.directory);
    wanted.limits.cpu_millis = 200;
    engine.create(&wanted).await.expect("create");
    engine.start(&name("limits")).await.expect("start");
    let mut tenant = node.accept().await;
    if support.pids {
        // one is the program itself
        assert_eq!(tenant.ask("threads 100").await, "15");
        assert_eq!(engine.stats(&name("limits")).await.expect("stats").pids, Some(16));
    }
    if support.cpu {
        let before = engine.stats(&name("limits")).await.expect("stats").cpu_ns.expect("counted");
        tenant.ask("spin 1000").await;
        let used = engine.stats(&name("limits")).await.expect("stats").cpu_ns.expect("counted") - before;
        // a fifth of a second, and at most one period more
        assert!(used < 400_000_000, "{used} ns of CPU in a second");
    }
    // far more than the log may hold: refused with EFBIG, or cut by the rotation; the tenant lives either way
    let answer = tenant.ask(&format!("log {}", 2 * LOG_BYTES_MAX / 1024)).await;
    assert!(answer == libc::EFBIG.to_string() || answer == "ok", "{answer}");
    let log = world.directory.join("limits/bundles/limits/log");
    assert!(std::fs::metadata(&log).expect("log").len() <= LOG_BYTES_MAX);
    assert_eq!(engine.logs(&name("limits"), 10).await.expect("logs"), b"xxxxxxxxxx");
    // the log is rotated in the background; then there is room again
    eventually("rotation", || std::fs::metadata(&log).is_ok_and(|log| log.len() < LOG_BYTES_MAX / 2)).await;
    assert_eq!(tenant.ask("log 1").await, "ok");
    if support.memory {
        assert_eq!(tenant.ask("eat 20").await, "20");
        assert_eq!(tenant.ask("eat 200").await, "", "killed");
        assert_eq!(engine.wait(&name("limits")).await.expect("wait"), Some(137));
    }
    engine.remove(&name("limits")).await.expect("remove");
}

async fn parallel(world: &World) {
    let engine = world.engine("parallel").await;
    let nodes: Vec<_> = (0..8).map(|number| world.node(&format!("parallel-{number}"))).collect();
    for round in 0..5 {
        let names: Vec<_> = (0..8).map(|number| format!("p{number}")).collect();
        let created = names.iter().zip(&nodes).map(|(name, node)| {
            let (engine, spec) = (engine.clone(), spec(name, world.image, &node.directory));
            async move { engine.create(&spec).await }
        });
        futures_util::future::try_join_all(created).await.expect("all created");
        let started = names.iter().map(|name| {
            let (engine, name) = (engine.clone(), self::name(name));
            tokio::spawn(async move { engine.start(&name).await })
        });
        for started in futures_util::future::join_all(started).await {
            started.expect("task").expect("started");
        }
        // each runs: it says hello on its own socket
        for (name, node) in names.iter().zip(&nodes) {
            assert_eq!(node.accept().await.hello, format!("hello {name}"), "round {round}");
        }
        assert_eq!(engine.list().await.expect("list").len(), 8);
        let removed = names.iter().map(|name| {
            let (engine, name) = (engine.clone(), self::name(name));
            async move { engine.remove(&name).await }
        });
        futures_util::future::try_join_all(removed).await.expect("all removed");
    }
}

async fn endings(world: &World) {
    let engine = world.engine("endings").await;
    let node = world.node("endings");
    let mut events = engine.events();
    for (container, started) in [("killed", true), ("killed-while-waiting", false)] {
        engine.create(&spec(container, world.image, &node.directory)).await.expect("create");
        // a tenant ends when its node hangs up: the connection is kept
        let mut tenant = None;
        if started {
            engine.start(&name(container)).await.expect("start");
            tenant = Some(node.accept().await);
        }
        let pid =
            engine.list().await.expect("list").into_iter().find(|status| status.name == name(container)).and_then(|s| s.pid);
        let pid = rustix::process::Pid::from_raw(pid.expect("alive")).expect("pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
        assert_eq!(engine.wait(&name(container)).await.expect("wait"), Some(137));
        drop(tenant);
        assert_eq!(state(&engine, container).await, Some(ContainerState::Exited { code: Some(137) }));
        assert!(matches!(engine.start(&name(container)).await, Err(Error::NotCreated { .. })));
        engine.remove(&name(container)).await.expect("remove");
    }
    let seen: Vec<_> = events.by_ref().take(7).collect().await;
    let (one, two) = (name("killed"), name("killed-while-waiting"));
    let expected = [
        Event::Created { name: one.clone() },
        Event::Started { name: one.clone() },
        Event::Exited { name: one.clone(), code: Some(137) },
        Event::Removed { name: one },
        Event::Created { name: two.clone() },
        Event::Exited { name: two.clone(), code: Some(137) },
        Event::Removed { name: two },
    ];
    assert_eq!(seen, expected);

    engine.create(&spec("polite", world.image, &node.directory)).await.expect("create");
    engine.start(&name("polite")).await.expect("start");
    let mut tenant = node.accept().await;
    assert_eq!(tenant.ask("polite").await, "ok");
    let begun = Instant::now();
    assert_eq!(engine.stop(&name("polite"), PATIENCE).await.expect("stop"), ContainerState::Exited { code: Some(3) });
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    engine.remove(&name("polite")).await.expect("remove");

    // process 1 of a namespace does not see a SIGTERM that it has no handler for: it costs the grace, then it is killed
    engine.create(&spec("stubborn", world.image, &node.directory)).await.expect("create");
    engine.start(&name("stubborn")).await.expect("start");
    let _tenant = node.accept().await;
    let begun = Instant::now();
    let ended = engine.stop(&name("stubborn"), Duration::from_millis(200)).await.expect("stop");
    assert_eq!(ended, ContainerState::Exited { code: Some(137) });
    assert!((200..2000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    engine.remove(&name("stubborn")).await.expect("remove");
}

async fn refusals(world: &World) {
    let engine = world.engine("refusals").await;
    let node = world.node("refusals");
    let good = spec("refused", world.image, &node.directory);
    let with = |change: &dyn Fn(&mut engine::ContainerSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        let engine = engine.clone();
        async move { engine.create(&spec).await.expect_err("refused") }
    };
    assert!(matches!(with(&|spec| spec.network = Network::Bridge).await, Error::BridgeUnsupported(_)));
    assert!(with(&|spec| spec.network = Network::Bridge).await.to_string().contains("BridgeUnsupported"));
    assert!(matches!(with(&|spec| spec.image = ImageId::from_bytes([1; 32])).await, Error::UnknownImage(_)));
    assert!(matches!(with(&|spec| spec.limits.pids = 0).await, Error::Spec(_)));
    assert!(matches!(with(&|spec| spec.mounts[0].source = "/nowhere".into()).await, Error::Io { .. }));
    // an image whose command does not exist is found out at creation, not at takeover
    let files = [engine::image::PackFile { path: "x".into(), source: engine::image::FileSource::Bytes(vec![1]), mode: 0o644 }];
    let config = engine::image::PackConfig { entrypoint: vec!["/bin/nothing".into()], ..Default::default() };
    let mut tar = Vec::new();
    engine::image::pack(&files, &config, &mut tar).expect("pack");
    let reader = ImageSource::Reader(Box::new(std::io::Cursor::new(tar)));
    let broken = engine.load_image(reader, None).await.expect("load from a reader");
    let error = with(&|spec| spec.image = broken).await;
    assert!(matches!(&error, Error::Helper { detail, .. } if detail.contains("/bin/nothing")), "{error}");
    assert_eq!(rest(&world.directory, "refusals"), BTreeSet::new(), "nothing is left of what was refused");
    assert!(engine.remove_image(&broken).await.expect("remove"));
    assert!(!engine.has_image(&broken).await.expect("has"));
    assert!(matches!(EmbeddedEngine::open(world.config("refusals")), Err(Error::Locked(_))), "one process per directory");
    engine.create(&good).await.expect("and a good one is created");
    engine.remove(&good.name).await.expect("remove");
}

/// Kills helpers at many points of a creation: what is not whole must be gone, what is whole must run.
async fn killed_helpers(world: &World) {
    let engine = world.engine("helpers").await;
    let node = world.node("helpers");
    let bundle = world.directory.join("helpers/bundles/cut").display().to_string();
    let (mut failed, mut whole) = (0, 0);
    for round in 0..40_u64 {
        let (creator, wanted) = (engine.clone(), spec("cut", world.image, &node.directory));
        let creation = tokio::spawn(async move { creator.create(&wanted).await });
        let helper = tokio::task::spawn_blocking({
            let bundle = bundle.clone();
            move || first_process(&bundle, Instant::now() + PATIENCE)
        });
        if let Some(pid) = helper.await.expect("task") {
            tokio::time::sleep(Duration::from_micros(round * 400)).await;
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        match creation.await.expect("task") {
            Ok(()) => whole += 1,
            Err(Error::Helper { .. }) => {
                failed += 1;
                assert_eq!(rest(&world.directory, "helpers"), BTreeSet::new(), "round {round}");
                assert_eq!(engine.list().await.expect("list"), []);
            }
            Err(error) => panic!("round {round}: {error}"),
        }
        engine.remove(&name("cut")).await.expect("remove");
    }
    println!("  {failed} creations cut off, {whole} were whole before");
    assert!(failed > 0, "no helper was caught in time");
    engine.create(&spec("cut", world.image, &node.directory)).await.expect("the name is free");
    engine.start(&name("cut")).await.expect("start");
    node.accept().await;
    engine.remove(&name("cut")).await.expect("remove");
}

fn first_process(bundle: &str, deadline: Instant) -> Option<rustix::process::Pid> {
    while Instant::now() < deadline {
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(bundle) {
                return rustix::process::Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
            }
        }
    }
    None
}

/// A node is killed with one container running, one waiting, and others being created; its successor takes over what is whole.
async fn killed_node(world: &World) {
    let (test, running, waiting) = ("node", world.node("running"), world.node("waiting"));
    let config = world.config(test);
    // a node's successor is not its parent: what the dead node leaves must not come to this process, as it would to a subreaper
    rustix::process::set_child_subreaper(None).expect("subreaper");
    let mut child = tokio::process::Command::new("/proc/self/exe")
        .arg(NODE_ARGUMENT)
        .args([config.prefix.as_str(), &config.state_dir.display().to_string(), &config.image_dir.display().to_string()])
        .args([world.tar.display().to_string(), world.directory.display().to_string()])
        .spawn()
        .expect("node");
    let mut tenant = running.accept().await;
    // the node now creates one container after the other
    let bundle = world.directory.join(test).join("bundles/later").display().to_string();
    let seen = tokio::task::spawn_blocking(move || first_process(&bundle, Instant::now() + PATIENCE));
    assert!(seen.await.expect("task").is_some(), "a creation is under way");
    child.kill().await.expect("kill");

    let engine = EmbeddedEngine::open(config).expect("open");
    let recovery = engine.recover().await.expect("recover");
    let whole: Vec<_> = recovery.adopted.iter().map(ContainerName::as_str).collect();
    assert!(whole.contains(&"running") && whole.contains(&"waiting"), "{recovery:?}");
    assert_eq!(engine.recover().await.expect("again"), engine::Recovery::default());
    assert_eq!(state(&engine, "running").await, Some(ContainerState::Running));
    assert_eq!(state(&engine, "waiting").await, Some(ContainerState::Created));
    assert_eq!(tenant.ask("env NAME").await, "running", "it never noticed");
    engine.start(&name("waiting")).await.expect("start what a predecessor prepared");
    assert_eq!(waiting.accept().await.hello, "hello waiting");
    // an end is noticed; its code is not, for the container is not a child of this process
    tenant.ask("exit 9").await;
    assert_eq!(engine.wait(&name("running")).await.expect("wait"), None);
    for status in engine.list().await.expect("list") {
        engine.remove(&status.name).await.expect("remove");
    }
    assert_eq!(rest(&world.directory, test), BTreeSet::new());
}

/// The node that [`killed_node`] kills.
fn play_node(arguments: &[String]) -> ExitCode {
    let [prefix, state, images, tar, sockets] = arguments else { return ExitCode::FAILURE };
    runtime().block_on(async {
        let engine = EmbeddedEngine::open(EmbeddedConfig::new(prefix.parse().expect("prefix"), state, images)).expect("open");
        let image = engine.load_image(ImageSource::Path(tar.into()), None).await.expect("load");
        let at = |name: &str| spec(name, image, &Path::new(sockets).join(format!("sockets-{name}")));
        engine.create(&at("running")).await.expect("create");
        engine.create(&at("waiting")).await.expect("create");
        engine.start(&name("running")).await.expect("start");
        let mut later = at("waiting");
        later.name = name("later");
        loop {
            engine.create(&later).await.expect("create");
            engine.remove(&later.name).await.expect("remove");
        }
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("runtime")
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if first.as_ref().is_some_and(|first| first == HELPER_ARGUMENT) {
        return helper_main(arguments);
    }
    if first.as_ref().is_some_and(|first| first == NODE_ARGUMENT) {
        return play_node(&arguments.filter_map(|argument| argument.into_string().ok()).collect::<Vec<_>>());
    }
    let filter = first.and_then(|first| first.into_string().ok()).filter(|first| !first.starts_with('-')).unwrap_or_default();
    let capabilities = engine::embedded::capabilities(&"antirio-test".parse().expect("prefix"));
    if !capabilities.usable() {
        println!("SKIPPED: {}", capabilities.missing.join("; "));
        return ExitCode::SUCCESS;
    }
    let directory = tempfile::tempdir().expect("directory");
    let (tar, packed) = pack_tenant(directory.path());
    let world = World { directory: directory.path().to_owned(), tar, image: packed.image };
    macro_rules! run {
        ($($test:ident),*) => {$(
            if stringify!($test).contains(&filter) {
                let begun = Instant::now();
                let runtime = runtime();
                runtime.block_on($test(&world));
                drop(runtime);
                println!("test {} ... ok ({} ms)", stringify!($test), begun.elapsed().as_millis());
            }
        )*};
    }
    run!(isolation, system_calls, limits, parallel, endings, refusals, killed_helpers, killed_node);
    for test in ["isolation", "calls", "limits", "parallel", "endings", "refusals", "helpers", "node"] {
        if directory.path().join(test).exists() {
            assert_eq!(rest(directory.path(), test), BTreeSet::new(), "{test}");
        }
    }
    assert_eq!(zombies(), Vec::<String>::new());
    println!("nothing is left behind");
    ExitCode::SUCCESS
}
