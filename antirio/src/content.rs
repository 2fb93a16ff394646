//! Content ids and image tars, without a node.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use engine::image::{FileSource, PackConfig, PackFile};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the content id (CIDv1) of a file, as the nodes and Kubo compute it.
    Cid { file: PathBuf },
    /// Pack a static program as an image FROM scratch, for OCI readers and Docker alike.
    Pack {
        /// The program; it becomes the entry point.
        program: PathBuf,
        /// The image tar.
        output: PathBuf,
    },
}

pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Cid { file } => cid(file).await,
        Command::Pack { program, output } => pack(program, output),
    }
}

async fn cid(path: PathBuf) -> anyhow::Result<ExitCode> {
    let scratch = std::env::temp_dir().join(format!("antirio-cid-{}", std::process::id()));
    let store = storage::BlockStore::open(&scratch, u64::MAX).await?;
    let file = tokio::fs::File::open(&path).await.with_context(|| path.display().to_string())?;
    let added = store.add(file, "cid").await;
    drop(store);
    std::fs::remove_dir_all(&scratch)?;
    println!("{}", added?);
    Ok(ExitCode::SUCCESS)
}

fn pack(program: PathBuf, output: PathBuf) -> anyhow::Result<ExitCode> {
    let name = program.file_name().context("the program has no file name")?.to_owned();
    let entrypoint = format!("/{}", name.to_string_lossy());
    let files = [PackFile { path: PathBuf::from(name), source: FileSource::Path(program), mode: 0o755 }];
    let config = PackConfig { entrypoint: vec![entrypoint], ..PackConfig::default() };
    let mut out = std::io::BufWriter::new(std::fs::File::create(&output).with_context(|| output.display().to_string())?);
    let packed = engine::image::pack(&files, &config, &mut out)?;
    std::io::Write::flush(&mut out)?;
    println!("{}", serde_json::json!({"image": packed.image.to_string(), "bytes": packed.bytes}));
    Ok(ExitCode::SUCCESS)
}
