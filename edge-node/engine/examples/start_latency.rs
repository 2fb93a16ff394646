//! Measures the embedded engine: `start_latency STATIC_PROGRAM [RUNS]` prints one JSON object.
//!
//! The program connects to `/run/antirio/node.sock`; the time from [`Engine::start`] to that connection is what a takeover waits for. Its CPU time is
//! told too: on a busy machine the rest is waiting for a processor.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use engine::embedded::{EmbeddedConfig, EmbeddedEngine, HELPER_ARGUMENT, helper_main};
use engine::image::{FileSource, PackConfig, PackFile, pack};
use engine::{ContainerSpec, Engine, ImageSource, Limits, Mount, Network};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if first.as_ref().is_some_and(|first| first == HELPER_ARGUMENT) {
        return helper_main(arguments);
    }
    let Some(program) = first else {
        eprintln!("usage: start_latency STATIC_PROGRAM [RUNS]");
        return ExitCode::FAILURE;
    };
    let runs = arguments.next().and_then(|runs| runs.to_str().and_then(|runs| runs.parse().ok())).unwrap_or(50);
    match measure(&PathBuf::from(program), runs) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn measure(program: &Path, runs: usize) -> Result<serde_json::Value, Failure> {
    let directory = tempfile::tempdir()?;
    let prefix = format!("antirio-latency-{}", std::process::id()).parse()?;
    let engine =
        EmbeddedEngine::open(EmbeddedConfig::new(prefix, directory.path().join("state"), directory.path().join("images")))?;
    engine.recover().await?;
    let files = [PackFile { path: "/tenant".into(), source: FileSource::Path(program.into()), mode: 0o755 }];
    let config = PackConfig { entrypoint: vec!["/tenant".into()], ..PackConfig::default() };
    let tar = directory.path().join("image.tar");
    pack(&files, &config, &mut std::fs::File::create(&tar)?)?;
    let image = engine.load_image(ImageSource::Path(tar), None).await?;
    let sockets = directory.path().join("sockets");
    std::fs::create_dir(&sockets)?;
    let listener = tokio::net::UnixListener::bind(sockets.join("node.sock"))?;
    for path in [sockets.clone(), sockets.join("node.sock")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    }
    let spec = ContainerSpec {
        name: "latency".parse()?,
        image,
        command: None,
        env: std::iter::once(("NAME".to_owned(), "latency".to_owned())).collect(),
        mounts: vec![Mount { source: sockets, target: engine::spec::SOCKET_DIRECTORY.into(), read_only: true }],
        limits: Limits { memory_bytes: 32 << 20, cpu_millis: 1000, pids: 16 },
        labels: std::iter::empty().collect(),
        network: Network::None,
    };
    let (mut create, mut start, mut connection, mut cpu, mut remove) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..runs {
        let begun = Instant::now();
        engine.create(&spec).await?;
        create.push(begun.elapsed().as_micros());
        let before = engine.stats(&spec.name).await?.cpu_ns.unwrap_or(0);
        let begun = Instant::now();
        engine.start(&spec.name).await?;
        start.push(begun.elapsed().as_micros());
        let (_stream, _) = listener.accept().await?;
        connection.push(begun.elapsed().as_micros());
        let used = engine.stats(&spec.name).await?.cpu_ns.unwrap_or(0).saturating_sub(before);
        cpu.push(u128::from(used / 1000));
        let begun = Instant::now();
        engine.remove(&spec.name).await?;
        remove.push(begun.elapsed().as_micros());
    }
    Ok(serde_json::json!({
        "runs": runs,
        "create_us": percentiles(create),
        "start_us": percentiles(start),
        "start_to_connection_us": percentiles(connection),
        "start_to_connection_cpu_us": percentiles(cpu),
        "remove_us": percentiles(remove),
    }))
}

fn percentiles(mut values: Vec<u128>) -> serde_json::Value {
    values.sort_unstable();
    let at = |percent: usize| values.get((values.len().saturating_sub(1)) * percent / 100);
    serde_json::json!({"p50": at(50), "p99": at(99), "max": values.last()})
}
