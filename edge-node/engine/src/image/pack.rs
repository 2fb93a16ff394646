//! Packs files into an image tar: one uncompressed layer on nothing (`FROM scratch`). Equal input gives equal bytes: no clock, no
//! owner, no order but the sorted one. The tar is an OCI layout and a `docker save` file at once, over the same blobs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::{Digest, Error, Hashing, ImageId, architecture, entries};

/// One file of the image's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackFile {
    /// Path in the root; a leading slash is ignored.
    pub path: PathBuf,
    /// Where the content comes from.
    pub source: FileSource,
    /// Permission bits, such as `0o755`.
    pub mode: u32,
}

/// Content of a packed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file of the host, read while packing.
    Path(PathBuf),
}

/// How the image is to be run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackConfig {
    /// First words of the command.
    pub entrypoint: Vec<String>,
    /// Further words, which a specification may replace.
    pub command: Vec<String>,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Where the command starts; the root if `None`.
    pub working_dir: Option<String>,
    /// In the words of the OCI specification (`amd64`, `arm64`); this machine's if `None`.
    pub architecture: Option<String>,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The image's id.
    pub image: ImageId,
    /// Size of the tar.
    pub bytes: u64,
}

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker needs a name to keep an image by; this one says nothing that the digest does not.
pub(crate) const REPOSITORY: &str = "antirio";

#[derive(Serialize)]
struct Config<'a> {
    architecture: &'a str,
    config: RunConfig<'a>,
    created: &'a str,
    history: [serde_json::Value; 1],
    os: &'a str,
    rootfs: serde_json::Value,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RunConfig<'a> {
    cmd: &'a [String],
    entrypoint: &'a [String],
    env: Vec<String>,
    labels: &'a BTreeMap<String, String>,
    user: String,
    working_dir: &'a str,
}

/// Writes the image tar to `out`.
///
/// # Errors
/// [`Error::UnsafePath`] for a path above the root or given twice, [`Error::NoCommand`], [`Error::SourceChanged`], [`Error::Io`].
pub fn pack(files: &[PackFile], config: &PackConfig, out: &mut dyn Write) -> Result<Packed, Error> {
    if config.entrypoint.is_empty() && config.command.is_empty() {
        return Err(Error::NoCommand);
    }
    let sorted = sort(files)?;
    // the outer tar needs a blob's digest before the blob: the layer is written twice, the first time into a hash
    let mut first = Hashing::new(io::sink());
    write_layer(&sorted, &mut first)?;
    let (layer, layer_bytes) = first.finish();

    let config_bytes = config_document(config, &layer)?;
    let image = ImageId::of(&config_bytes);
    // keys in alphabetical order: serde_json may or may not sort them, as other crates of a build choose
    let descriptor =
        |kind: &str, digest: &Digest, size: u64| json!({"digest": digest.to_string(), "mediaType": kind, "size": size});
    let manifest_bytes = document(&json!({
        "config": descriptor(CONFIG_TYPE, &Digest(*image.as_bytes()), config_bytes.len() as u64),
        "layers": [descriptor(LAYER_TYPE, &layer, layer_bytes)],
        "mediaType": MANIFEST_TYPE,
        "schemaVersion": 2,
    }))?;
    let index = document(&json!({
        "manifests": [descriptor(MANIFEST_TYPE, &Digest::of(&manifest_bytes), manifest_bytes.len() as u64)],
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "schemaVersion": 2,
    }))?;
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let saved = document(&json!([{
        "Config": blob(&Digest(*image.as_bytes())),
        "Layers": [blob(&layer)],
        "RepoTags": [format!("{REPOSITORY}:{}", image.hex())],
    }]))?;

    let mut out = Hashing::new(out);
    let mut tar = tar::Builder::new(&mut out);
    let failed = || Error::io("write", "the image tar");
    let mut member =
        |name: &str, bytes: &[u8]| tar.append_data(&mut header(bytes.len() as u64, 0o644), name, bytes).map_err(failed());
    member(&blob(&Digest(*image.as_bytes())), &config_bytes)?;
    member(&blob(&Digest::of(&manifest_bytes)), &manifest_bytes)?;
    member("index.json", &index)?;
    member("manifest.json", &saved)?;
    member("oci-layout", &document(&json!({"imageLayoutVersion": "1.0.0"}))?)?;
    append_layer(&mut tar, &blob(&layer), &sorted, (layer, layer_bytes))?;
    tar.into_inner().map_err(failed())?.flush().map_err(failed())?;
    let (_, bytes) = out.finish();
    Ok(Packed { image, bytes })
}

fn config_document(config: &PackConfig, layer: &Digest) -> Result<Vec<u8>, Error> {
    document(&Config {
        architecture: config.architecture.as_deref().unwrap_or(architecture()),
        config: RunConfig {
            cmd: &config.command,
            entrypoint: &config.entrypoint,
            env: config.env.iter().map(|(key, value)| format!("{key}={value}")).collect(),
            labels: &config.labels,
            user: format!("{0}:{0}", crate::spec::TENANT_ID),
            working_dir: config.working_dir.as_deref().unwrap_or("/"),
        },
        created: "1970-01-01T00:00:00Z",
        history: [json!({"created": "1970-01-01T00:00:00Z", "created_by": "antirio"})],
        os: "linux",
        rootfs: json!({"diff_ids": [layer.to_string()], "type": "layers"}),
    })
}

fn document(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|source| Error::Json { document: "a document".to_owned(), source })
}

fn sort(files: &[PackFile]) -> Result<BTreeMap<PathBuf, &PackFile>, Error> {
    let mut sorted = BTreeMap::new();
    for file in files {
        let path = entries::clean(&file.path)?;
        if path.as_os_str().is_empty() || sorted.insert(path, file).is_some() {
            return Err(Error::UnsafePath(file.path.clone()));
        }
    }
    // a file cannot be the directory of another
    for path in sorted.keys() {
        if path.ancestors().skip(1).any(|above| sorted.contains_key(above)) {
            return Err(Error::UnsafePath(path.clone()));
        }
    }
    Ok(sorted)
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode & 0o7777);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn write_layer(files: &BTreeMap<PathBuf, &PackFile>, out: &mut dyn Write) -> Result<(), Error> {
    let mut tar = tar::Builder::new(out);
    let mut made = BTreeSet::new();
    for (path, file) in files {
        let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).collect();
        above.reverse();
        for directory in above {
            if made.insert(directory.to_owned()) {
                let mut header = header(0, 0o755);
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, directory.join(""), io::empty()).map_err(Error::io("pack", directory))?;
            }
        }
        match &file.source {
            FileSource::Bytes(bytes) => tar.append_data(&mut header(bytes.len() as u64, file.mode), path, bytes.as_slice()),
            FileSource::Path(source) => {
                let reader = File::open(source).map_err(Error::io("open", source))?;
                let metadata = reader.metadata().map_err(Error::io("open", source))?;
                if !metadata.is_file() {
                    return Err(Error::Io {
                        operation: "pack",
                        path: source.clone(),
                        source: io::ErrorKind::InvalidInput.into(),
                    });
                }
                let size = metadata.len();
                let mut exact = Exact { inner: reader, left: size };
                tar.append_data(&mut header(size, file.mode), path, &mut exact)
            }
        }
        .map_err(Error::io("pack", &file.path))?;
    }
    tar.into_inner().map(|_| ()).map_err(Error::io("pack", "the layer"))
}

/// Exactly as many bytes as the header says, or an error.
struct Exact {
    inner: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = Read::by_ref(&mut self.inner).take(self.left).read(buffer)?;
        if length == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.left -= length as u64;
        Ok(length)
    }
}

fn append_layer<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    files: &BTreeMap<PathBuf, &PackFile>,
    (digest, bytes): (Digest, u64),
) -> Result<(), Error> {
    let failed = || Error::io("write", "the image tar");
    let mut header = header(bytes, 0o644);
    header.set_path(name).map_err(failed())?;
    header.set_cksum();
    let out = tar.get_mut();
    out.write_all(header.as_bytes()).map_err(failed())?;
    let mut second = Hashing::new(&mut *out);
    write_layer(files, &mut second)?;
    if second.finish() != (digest, bytes) {
        let source = files.values().find_map(|file| match &file.source {
            FileSource::Path(path) => Some(path.clone()),
            FileSource::Bytes(_) => None,
        });
        return Err(Error::SourceChanged(source.unwrap_or_default()));
    }
    // a tar's end is whole blocks, so no padding is needed after it
    debug_assert!(bytes.is_multiple_of(512), "a tar has whole blocks");
    Ok(())
}
