//! What several tests share: the tenant under test, its image, its socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::image::{FileSource, PackConfig, PackFile, Packed, pack};
use engine::{ContainerSpec, ImageId, Limits, Mount, Network};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Builds the static tenant program.
pub fn build_tenant(directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/tenant.rs");
    let program = directory.join("tenant");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let built = std::process::Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2021", "-O", "-C", "target-feature=+crt-static", "--target", &target, "-o"])
        .arg(&program)
        .arg(source)
        .output()
        .expect("rustc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

/// Packs the tenant program into an image tar.
pub fn pack_tenant(directory: &Path) -> (PathBuf, Packed) {
    let program = build_tenant(directory);
    let files = [
        PackFile { path: "/bin/tenant".into(), source: FileSource::Path(program), mode: 0o755 },
        PackFile { path: "/etc/os-release".into(), source: FileSource::Bytes(b"ID=antirio-test\n".to_vec()), mode: 0o644 },
    ];
    let config = PackConfig {
        entrypoint: vec!["/bin/tenant".into()],
        command: vec!["from-image".into()],
        env: BTreeMap::from([("FROM_IMAGE".into(), "yes".into()), ("BOTH".into(), "image".into())]),
        working_dir: Some("/etc".into()),
        ..PackConfig::default()
    };
    let tar = directory.join("tenant.tar");
    let packed = pack(&files, &config, &mut std::fs::File::create(&tar).expect("create")).expect("pack");
    (tar, packed)
}

/// A directory with a listening socket that a tenant may connect to.
pub struct Node {
    pub directory: PathBuf,
    pub listener: UnixListener,
}

impl Node {
    pub fn new(parent: &Path, name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = parent.join(format!("sockets-{name}"));
        std::fs::create_dir_all(&directory).expect("directory");
        let socket = directory.join("node.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("bind");
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).expect("mode");
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).expect("mode");
        Self { directory, listener }
    }

    /// Waits for the tenant's connection.
    pub async fn accept(&self) -> Tenant {
        let (stream, _) =
            tokio::time::timeout(PATIENCE, self.listener.accept()).await.expect("a tenant connects").expect("accept");
        let mut tenant = Tenant { stream: BufReader::new(stream), hello: String::new() };
        tenant.hello = tenant.line().await;
        tenant
    }
}

/// A connected tenant.
pub struct Tenant {
    stream: BufReader<UnixStream>,
    pub hello: String,
}

impl Tenant {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, self.stream.read_line(&mut line)).await.expect("an answer in time").expect("an answer");
        line.trim().to_owned()
    }

    /// Sends a command; the answer is empty if the tenant ended instead.
    pub async fn ask(&mut self, command: &str) -> String {
        self.stream.get_mut().write_all(format!("{command}\n").as_bytes()).await.expect("command");
        self.line().await
    }
}

/// A specification for a tenant whose socket is `node`'s.
pub fn spec(name: &str, image: ImageId, node: &Path) -> ContainerSpec {
    ContainerSpec {
        name: name.parse().expect("name"),
        image,
        command: None,
        env: BTreeMap::from([("NAME".into(), name.into()), ("BOTH".into(), "spec".into())]),
        mounts: vec![Mount { source: node.to_owned(), target: engine::spec::SOCKET_DIRECTORY.into(), read_only: true }],
        limits: Limits { memory_bytes: 32 << 20, cpu_millis: 1000, pids: 16 },
        labels: BTreeMap::from([("contract".into(), "contract_1".into()), ("epoch".into(), "3".into())]),
        network: Network::None,
    }
}
