//! Finds the one image of a tar: OCI layout (`index.json`) or `docker save` (`manifest.json`), or both saying the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::entries::{self, Kind};
use super::{Digest, Error, Hashing, ImageId, ImageLimits, architecture};

/// Deepest nesting of indexes and of links between members.
const NESTING_MAX: usize = 4;

/// What an image says about running it (the `config` object of an OCI image configuration). `User` is kept for display only: every
/// container runs as [`crate::spec::TENANT_ID`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// First words of the command.
    pub entrypoint: Option<Vec<String>>,
    /// Further words; replaced by a specification's command.
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// Where the command starts.
    pub working_dir: Option<String>,
    /// The user that the image wishes for.
    pub user: Option<String>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

/// Where a member's content is within the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    offset: u64,
    size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
}

/// One layer, and what its content must hash to.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub name: String,
    pub place: Place,
    pub compression: Compression,
    /// Digest of the bytes in the tar, where a manifest gives it.
    pub blob: Option<Digest>,
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
}

/// An image tar whose documents are verified; its layers are not yet.
#[derive(Debug)]
pub(super) struct Layout {
    pub id: ImageId,
    pub config: ImageConfig,
    /// The exact configuration document; its digest is the id.
    pub config_bytes: Vec<u8>,
    pub layers: Vec<Layer>,
}

/// A tar on disk and where its members are.
#[derive(Debug)]
pub(super) struct ImageTar {
    path: PathBuf,
    members: BTreeMap<PathBuf, Member>,
    limits: ImageLimits,
}

#[derive(Debug)]
enum Member {
    File(Place),
    /// Older versions of `docker save` link equal layers.
    Link(PathBuf),
}

impl ImageTar {
    pub(super) fn open(path: &Path, limits: ImageLimits) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let size = file.metadata().map_err(Error::io("open", path))?.len();
        if size > limits.tar_bytes_max {
            return Err(Error::TooLarge { what: "tar bytes", max: limits.tar_bytes_max });
        }
        let mut members = BTreeMap::new();
        entries::for_each(io::BufReader::new(file), limits.members_max, |entry, _| {
            let member = match &entry.kind {
                Kind::File => Member::File(Place { offset: entry.offset, size: entry.size }),
                Kind::Hardlink(target) => Member::Link(target.clone()),
                Kind::Symlink(target) => Member::Link(beside(&entry.path, target)?),
                Kind::Directory => return Ok(()),
                Kind::Special(kind) => return Err(Error::SpecialFile { path: entry.path.clone(), kind: *kind }),
            };
            // two members of one name would let two readers see two images
            if members.insert(entry.path.clone(), member).is_some() {
                return Err(Error::UnsafePath(entry.path.clone()));
            }
            if members.len() as u64 > limits.members_max {
                return Err(Error::TooLarge { what: "members", max: limits.members_max });
            }
            Ok(())
        })?;
        Ok(Self { path: path.to_owned(), members, limits })
    }

    fn find(&self, name: &str) -> Result<Place, Error> {
        let mut path = entries::clean(Path::new(name))?;
        for _ in 0..NESTING_MAX {
            match self.members.get(&path) {
                Some(Member::File(place)) => return Ok(*place),
                Some(Member::Link(target)) => path = target.clone(),
                None => break,
            }
        }
        Err(Error::MissingBlob(name.to_owned()))
    }

    fn has(&self, name: &str) -> bool {
        self.members.contains_key(Path::new(name))
    }

    /// The bytes of a member as they are in the tar.
    pub(super) fn reader(&self, place: Place) -> Result<io::Take<File>, Error> {
        let mut file = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        file.seek(SeekFrom::Start(place.offset)).map_err(Error::io("read", &self.path))?;
        Ok(file.take(place.size))
    }

    fn document_bytes(&self, name: &str, place: Place) -> Result<Vec<u8>, Error> {
        if place.size > self.limits.json_bytes_max {
            return Err(Error::TooLarge { what: "JSON bytes", max: self.limits.json_bytes_max });
        }
        let mut bytes = Vec::new();
        self.reader(place)?.read_to_end(&mut bytes).map_err(Error::Tar)?;
        if bytes.len() as u64 != place.size {
            return Err(Error::SizeMismatch { blob: name.to_owned(), expected: place.size, actual: bytes.len() as u64 });
        }
        Ok(bytes)
    }

    fn blob_bytes(&self, descriptor: &Descriptor) -> Result<(String, Vec<u8>), Error> {
        let (name, place, digest) = self.blob(descriptor)?;
        let bytes = self.document_bytes(&name, place)?;
        check_digest(&name, digest, Digest::of(&bytes))?;
        Ok((name, bytes))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<(String, Place, Digest), Error> {
        let digest: Digest = descriptor.digest.parse()?;
        let name = format!("blobs/sha256/{}", digest.hex());
        let place = self.find(&name)?;
        if place.size != descriptor.size {
            return Err(Error::SizeMismatch { blob: name, expected: descriptor.size, actual: place.size });
        }
        Ok((name, place, digest))
    }

    /// The tar's one image.
    pub(super) fn layout(&self) -> Result<Layout, Error> {
        let index = if self.has("index.json") { Some(self.read_index()?) } else { None };
        let saved = if self.has("manifest.json") { Some(self.read_saved()?) } else { None };
        match (index, saved) {
            (Some(index), Some(saved)) if index.id != saved.id => Err(Error::TwoFaced { index: index.id, manifest: saved.id }),
            (Some(layout), _) | (None, Some(layout)) => Ok(layout),
            (None, None) => Err(Error::NotAnImage),
        }
    }

    fn read_index(&self) -> Result<Layout, Error> {
        let mut name = "index.json".to_owned();
        let mut bytes = self.document_bytes(&name, self.find(&name)?)?;
        for _ in 0..NESTING_MAX {
            let index: Index = parse(&name, &bytes)?;
            let ours: Vec<_> = index.manifests.iter().filter(|descriptor| is_ours(descriptor)).collect();
            let [descriptor] = ours.as_slice() else { return Err(Error::ImageCount(ours.len())) };
            (name, bytes) = self.blob_bytes(descriptor)?;
            if !descriptor.media_type.ends_with(".index.v1+json") && !descriptor.media_type.ends_with(".list.v2+json") {
                return self.read_manifest(&name, &bytes);
            }
        }
        Err(Error::Unsupported("an index this deep".to_owned()))
    }

    fn read_manifest(&self, name: &str, bytes: &[u8]) -> Result<Layout, Error> {
        let manifest: Manifest = parse(name, bytes)?;
        let (config_name, config_bytes) = self.blob_bytes(&manifest.config)?;
        let (config, diff_ids) = self.read_config(&config_name, &config_bytes, manifest.layers.len())?;
        let layers = manifest.layers.iter().zip(diff_ids).map(|(descriptor, diff_id)| {
            let (name, place, digest) = self.blob(descriptor)?;
            let compression = match descriptor.media_type.as_str() {
                "application/vnd.oci.image.layer.v1.tar" => Compression::None,
                "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                    Compression::Gzip
                }
                // `docker save` since 25 calls uncompressed layers so
                "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
                other => return Err(Error::Unsupported(format!("a layer of type {other:?}"))),
            };
            Ok(Layer { name, place, compression, blob: Some(digest), diff_id })
        });
        let layers = layers.collect::<Result<_, Error>>()?;
        Ok(Layout { id: ImageId::of(&config_bytes), config, config_bytes, layers })
    }

    fn read_saved(&self) -> Result<Layout, Error> {
        let name = "manifest.json";
        let images: Vec<SavedImage> = parse(name, &self.document_bytes(name, self.find(name)?)?)?;
        let [image] = images.as_slice() else { return Err(Error::ImageCount(images.len())) };
        let config_bytes = self.document_bytes(&image.config, self.find(&image.config)?)?;
        // the file is named after its digest: `<hex>.json`, or `blobs/sha256/<hex>`
        let stem = Path::new(&image.config).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digest: Digest = format!("sha256:{}", stem.trim_end_matches(".json")).parse()?;
        check_digest(&image.config, digest, Digest::of(&config_bytes))?;
        let (config, diff_ids) = self.read_config(&image.config, &config_bytes, image.layers.len())?;
        let layers = image.layers.iter().zip(diff_ids).map(|(name, diff_id)| {
            let place = self.find(name)?;
            let compression = if self.is_gzip(place)? { Compression::Gzip } else { Compression::None };
            Ok(Layer { name: name.clone(), place, compression, blob: None, diff_id })
        });
        let layers = layers.collect::<Result<_, Error>>()?;
        Ok(Layout { id: ImageId::of(&config_bytes), config, config_bytes, layers })
    }

    fn is_gzip(&self, place: Place) -> Result<bool, Error> {
        let mut magic = Vec::new();
        self.reader(place)?.take(2).read_to_end(&mut magic).map_err(Error::Tar)?;
        Ok(magic == [0x1f, 0x8b])
    }

    fn read_config(&self, name: &str, bytes: &[u8], layers: usize) -> Result<(ImageConfig, Vec<Digest>), Error> {
        let document: ConfigDocument = parse(name, bytes)?;
        let (actual, expected) = (format!("{}/{}", document.os, document.architecture), format!("linux/{}", architecture()));
        if actual != expected {
            return Err(Error::WrongPlatform { actual, expected });
        }
        if layers > self.limits.layers_max {
            return Err(Error::TooLarge { what: "layers", max: self.limits.layers_max as u64 });
        }
        if document.rootfs.diff_ids.len() != layers {
            let (expected, actual) = (document.rootfs.diff_ids.len() as u64, layers as u64);
            return Err(Error::SizeMismatch { blob: "the list of layers".to_owned(), expected, actual });
        }
        let diff_ids = document.rootfs.diff_ids.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        Ok((document.config.unwrap_or_default(), diff_ids))
    }

    /// Gives the uncompressed layer to `read`, then verifies that every byte of it was as promised.
    pub(super) fn read_layer<T>(
        &self,
        layer: &Layer,
        bytes_max: u64,
        read: impl FnOnce(&mut dyn Read) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut blob = Hashing::new(io::BufReader::new(self.reader(layer.place)?));
        let (value, diff_id) = match layer.compression {
            Compression::None => unpacked(&mut blob, bytes_max, read)?,
            Compression::Gzip => unpacked(&mut flate2::read::MultiGzDecoder::new(&mut blob), bytes_max, read)?,
        };
        io::copy(&mut blob, &mut io::sink()).map_err(Error::Tar)?;
        let (digest, size) = blob.finish();
        if size != layer.place.size {
            return Err(Error::SizeMismatch { blob: layer.name.clone(), expected: layer.place.size, actual: size });
        }
        if let Some(expected) = layer.blob {
            check_digest(&layer.name, expected, digest)?;
        }
        check_digest(&format!("the content of {}", layer.name), layer.diff_id, diff_id)?;
        Ok(value)
    }
}

fn unpacked<T>(
    reader: &mut dyn Read,
    bytes_max: u64,
    read: impl FnOnce(&mut dyn Read) -> Result<T, Error>,
) -> Result<(T, Digest), Error> {
    // one byte more than allowed shows a layer that is too large
    let mut bounded = Hashing::new(reader.take(bytes_max.saturating_add(1)));
    let outcome = read(&mut bounded);
    // whatever `read` made of it: padding after the end of the tar belongs to the layer too
    let drained = io::copy(&mut bounded, &mut io::sink());
    let (digest, size) = bounded.finish();
    if size > bytes_max {
        return Err(Error::TooLarge { what: "unpacked bytes", max: bytes_max });
    }
    let value = outcome?;
    drained.map_err(Error::Tar)?;
    Ok((value, digest))
}

fn beside(link: &Path, target: &Path) -> Result<PathBuf, Error> {
    let mut path = link.parent().unwrap_or(Path::new("")).to_owned();
    for part in target.components() {
        match part {
            std::path::Component::Normal(name) => path.push(name),
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if path.pop() => {}
            _ => return Err(Error::UnsafePath(target.to_owned())),
        }
    }
    Ok(path)
}

fn is_ours(descriptor: &Descriptor) -> bool {
    // attestations are listed as manifests for the platform unknown/unknown
    descriptor.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == architecture())
}

fn parse<T: DeserializeOwned>(document: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { document: document.to_owned(), source })
}

fn check_digest(blob: &str, expected: Digest, actual: Digest) -> Result<(), Error> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::DigestMismatch { blob: blob.to_owned(), expected: expected.to_string(), actual: actual.to_string() })
}

/// Reads the run configuration out of a stored configuration document.
pub(super) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, Error> {
    let document: ConfigDocument = parse("the stored configuration", bytes)?;
    Ok(document.config.unwrap_or_default())
}
