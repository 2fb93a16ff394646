//! Image tars: what is packed is read back by both formats, and what is hostile is refused by name.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use engine::ImageId;
use engine::image::{Error, FileSource, ImageLimits, PackConfig, PackFile, Store, architecture, inspect, pack};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

fn file(path: &str, content: &[u8], mode: u32) -> PackFile {
    PackFile { path: path.into(), source: FileSource::Bytes(content.to_vec()), mode }
}

fn sample() -> (Vec<PackFile>, PackConfig) {
    let long = format!("/deep/{}/{}", "d".repeat(90), "f".repeat(90));
    let files = vec![file("/bin/app", b"\x7fELF", 0o755), file("etc/app.toml", b"a = 1\n", 0o640), file(&long, b"long", 0o644)];
    let config = PackConfig {
        entrypoint: vec!["/bin/app".into()],
        command: vec!["--serve".into()],
        env: BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2".into())]),
        labels: BTreeMap::from([("org.antirio.service".into(), "lora".into())]),
        working_dir: Some("/etc".into()),
        architecture: None,
    };
    (files, config)
}

fn packed(files: &[PackFile], config: &PackConfig) -> (ImageId, Vec<u8>) {
    let mut bytes = Vec::new();
    let packed = pack(files, config, &mut bytes).unwrap();
    assert_eq!(packed.bytes, bytes.len() as u64);
    (packed.image, bytes)
}

/// The members of a tar in order.
fn members(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}

fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

struct World {
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> Store {
        self.store_with(ImageLimits::default())
    }

    fn store_with(&self, limits: ImageLimits) -> Store {
        Store::open(&self.directory.path().join("images"), limits).unwrap()
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join("image.tar");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// What a refused image left in the store.
    fn rest(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("images")).unwrap().count()
    }

    /// Loads a hostile tar and gives the error, after making sure that nothing stayed.
    fn refused(&self, bytes: &[u8]) -> Error {
        let store = self.store();
        let error = store.load(&self.write(bytes), None).expect_err("it must be refused");
        assert_eq!(self.rest(), 0, "something is left of a refused image: {error}");
        // reading without unpacking may be content with a layer's bad paths, but never with lies
        error
    }
}

#[test]
fn equal_input_gives_equal_bytes() {
    let (files, config) = sample();
    let (image, bytes) = packed(&files, &config);
    let mut shuffled = files.clone();
    shuffled.reverse();
    assert_eq!(packed(&shuffled, &config), (image, bytes.clone()), "the order of files does not matter");
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("app");
    std::fs::write(&source, b"\x7fELF").unwrap();
    let mut from_path = files.clone();
    from_path[0].source = FileSource::Path(source);
    assert_eq!(packed(&from_path, &config), (image, bytes.clone()), "neither does where the content comes from");
    let mut other = files;
    other[1].mode = 0o600;
    assert_ne!(packed(&other, &config).0, image);
    assert_ne!(packed(&other, &PackConfig { env: BTreeMap::new(), ..config }).0, image);
}

#[test]
fn what_cannot_be_packed() {
    let (files, config) = sample();
    let refuse = |files: &[PackFile], config: &PackConfig| pack(files, config, &mut Vec::new()).expect_err("refused");
    assert!(matches!(refuse(&files, &PackConfig::default()), Error::NoCommand));
    for paths in [vec!["../x"], vec!["/"], vec!["a", "/a"], vec!["a", "a/b"], vec!["a/../b"]] {
        let files: Vec<_> = paths.iter().map(|path| file(path, b"", 0o644)).collect();
        assert!(matches!(refuse(&files, &config), Error::UnsafePath(_)), "{paths:?}");
    }
    let missing = PackFile { path: "a".into(), source: FileSource::Path("/nowhere".into()), mode: 0 };
    assert!(matches!(refuse(&[missing], &config), Error::Io { .. }));
}

#[test]
fn both_formats_are_read_and_unpacked() {
    let (files, config) = sample();
    let (image, bytes) = packed(&files, &config);
    let all = members(&bytes);
    let without = |name: &str| tar_of(&all.iter().filter(|(member, _)| member != name).cloned().collect::<Vec<_>>());
    for (what, tar) in [("both", bytes.clone()), ("OCI only", without("manifest.json")), ("docker only", without("index.json"))] {
        let world = World::new();
        let store = world.store();
        let path = world.write(&tar);
        assert_eq!(inspect(&path, ImageLimits::default()).unwrap().0, image, "{what}");
        assert_eq!(store.load(&path, Some(&image)).unwrap(), image, "{what}");
        assert_eq!(store.load(&path, None).unwrap(), image, "a second time is fine");
        let root = store.rootfs(&image);
        assert_eq!(std::fs::read(root.join("etc/app.toml")).unwrap(), b"a = 1\n");
        let app = std::fs::metadata(root.join("bin/app")).unwrap();
        assert_eq!((app.permissions().mode() & 0o7777, app.len()), (0o755, 4));
        let long = format!("deep/{}/{}", "d".repeat(90), "f".repeat(90));
        assert_eq!(std::fs::read(root.join(long)).unwrap(), b"long");
        let read = store.config(&image).unwrap().unwrap();
        assert_eq!(read.entrypoint, Some(vec!["/bin/app".to_owned()]));
        assert_eq!(read.cmd, Some(vec!["--serve".to_owned()]));
        assert_eq!(read.env, Some(vec!["A=1".to_owned(), "B=2".to_owned()]));
        assert_eq!(read.working_dir.as_deref(), Some("/etc"));
        assert_eq!(world.rest(), 1);
        assert!(store.has(&image) && store.remove(&image).unwrap() && !store.remove(&image).unwrap() && !store.has(&image));
        assert_eq!(world.rest(), 0);
    }
}

#[test]
fn another_image_than_expected() {
    let (files, config) = sample();
    let (image, bytes) = packed(&files, &config);
    let world = World::new();
    let expected = ImageId::from_bytes([1; 32]);
    let error = world.store().load(&world.write(&bytes), Some(&expected)).unwrap_err();
    assert!(matches!(error, Error::NotExpected { actual, .. } if actual == image), "{error}");
    assert_eq!(world.rest(), 0);
}

#[test]
fn no_image_at_all() {
    let world = World::new();
    assert!(matches!(world.refused(b""), Error::NotAnImage));
    assert!(matches!(world.refused(b"not a tar at all"), Error::Tar(_)));
    assert!(matches!(world.refused(&[0xff; 4096]), Error::Tar(_)));
    assert!(matches!(world.refused(&tar_of(&[("a".into(), b"b".to_vec())])), Error::NotAnImage));
    for name in ["index.json", "manifest.json"] {
        for content in [&b"{"[..], b"[]", b"{}", b"null", b"{\"manifests\":[]}", b"[1]"] {
            let error = world.refused(&tar_of(&[(name.into(), content.to_vec())]));
            assert!(matches!(error, Error::Json { .. } | Error::ImageCount(0)), "{name} {error}");
        }
    }
}

#[test]
fn cut_off_anywhere() {
    let (files, config) = sample();
    let (_, bytes) = packed(&files, &config);
    let world = World::new();
    // the last member is the layer; behind it lie only the two empty blocks of the end
    let end = bytes.len() - 1024;
    for length in (0..end).step_by(256) {
        let error = world.refused(&bytes[..length]);
        let known = matches!(
            error,
            Error::Tar(_) | Error::NotAnImage | Error::MissingBlob(_) | Error::SizeMismatch { .. } | Error::DigestMismatch { .. }
        );
        assert!(known, "cut at {length}: {error}");
    }
}

#[test]
fn every_flipped_byte_is_noticed_or_without_meaning() {
    let (files, config) = sample();
    let (image, bytes) = packed(&files, &config);
    let world = World::new();
    let path = world.directory.path().join("image.tar");
    for position in (0..bytes.len()).step_by(37) {
        let mut flipped = bytes.clone();
        flipped[position] ^= 0x10;
        std::fs::write(&path, &flipped).unwrap();
        // metadata of the outer tar (times, modes) means nothing; content must be right
        if let Ok((found, _)) = inspect(&path, ImageLimits::default()) {
            assert_eq!(found, image, "byte {position}");
        }
    }
}

/// One image out of the given layer tars, with chances to lie.
struct Forged {
    layers: Vec<Vec<u8>>,
    gzip: bool,
    platform: (String, String),
}

impl Forged {
    fn new(layers: Vec<Vec<u8>>) -> Self {
        Self { layers, gzip: false, platform: ("linux".into(), architecture().into()) }
    }

    fn members(&self) -> BTreeMap<String, Vec<u8>> {
        let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest(bytes));
        let stored: Vec<Vec<u8>> = self.layers.iter().map(|layer| if self.gzip { gzip(layer) } else { layer.clone() }).collect();
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
        let config = json!({"os": self.platform.0, "architecture": self.platform.1, "config": {"Cmd": ["/x"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()});
        let kind =
            if self.gzip { "application/vnd.oci.image.layer.v1.tar+gzip" } else { "application/vnd.oci.image.layer.v1.tar" };
        let layers: Vec<_> = stored.iter().map(|layer| descriptor(kind, layer)).collect();
        let manifest = json!({"schemaVersion": 2, "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": layers});
        let manifest = manifest.to_string().into_bytes();
        let index = json!({"manifests": [descriptor("application/vnd.oci.image.manifest.v1+json", &manifest)]});
        let saved = json!([{"Config": blob(&config), "Layers": stored.iter().map(|layer| blob(layer)).collect::<Vec<_>>()}]);
        let mut members: BTreeMap<_, _> = stored.into_iter().map(|layer| (blob(&layer), layer)).collect();
        members.insert(blob(&config), config);
        members.insert(blob(&manifest), manifest);
        members.insert("index.json".into(), index.to_string().into_bytes());
        members.insert("manifest.json".into(), saved.to_string().into_bytes());
        members
    }

    fn tar(&self) -> Vec<u8> {
        tar_of(&self.members().into_iter().collect::<Vec<_>>())
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer entry with any name, type and link, unchecked.
fn entry(path: &str, kind: EntryType, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o6755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Path, type, link and content of a layer's entry.
type Plain<'a> = (&'a str, EntryType, &'a str, &'a [u8]);
/// Content by name.
type Members = BTreeMap<String, Vec<u8>>;

fn layer(entries: &[Plain]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(|(path, kind, link, content)| entry(path, *kind, link, content)).collect();
    bytes.extend([0; 1024]);
    bytes
}

use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

#[test]
fn lying_documents() {
    let world = World::new();
    let good = Forged::new(vec![layer(&[("x", Regular, "", b"1")])]);
    let change = |edit: &dyn Fn(&mut Members)| {
        let mut members = good.members();
        edit(&mut members);
        world.refused(&tar_of(&members.into_iter().collect::<Vec<_>>()))
    };
    let text = |members: &BTreeMap<String, Vec<u8>>, name: &str| String::from_utf8(members[name].clone()).unwrap();
    let blob_of = |members: &BTreeMap<String, Vec<u8>>, what: &str| {
        members
            .iter()
            .find(|(name, content)| name.starts_with("blobs/") && String::from_utf8_lossy(content).contains(what))
            .unwrap()
            .0
            .clone()
    };
    // a blob whose content is another
    for what in ["diff_ids", "schemaVersion", "ustar"] {
        let error = change(&|members| {
            let name = blob_of(members, what);
            let content = members.get_mut(&name).unwrap();
            let last = content.iter().rposition(|byte| *byte == b'1').unwrap_or(0);
            content[last] = b'3';
        });
        assert!(matches!(error, Error::DigestMismatch { .. }), "{what}: {error}");
    }
    // a layer that the manifest calls right but the configuration does not
    let error = change(&|members| {
        members.remove("index.json");
        let saved = text(members, "manifest.json");
        let layer = blob_of(members, "ustar");
        let other = self::layer(&[("y", Regular, "", b"2")]);
        members.insert("other.tar".into(), other);
        members.insert("manifest.json".into(), saved.replace(&layer, "other.tar").into_bytes());
    });
    assert!(matches!(&error, Error::DigestMismatch { blob, .. } if blob.contains("content of")), "{error}");
    let error = change(&|members| {
        let index = text(members, "index.json").replace("\"size\":", "\"size\":1");
        members.insert("index.json".into(), index.into_bytes());
    });
    assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");
    let error = change(&|members| {
        let name = blob_of(members, "ustar");
        members.remove(&name);
    });
    assert!(matches!(error, Error::MissingBlob(_)), "{error}");
    for digest in
        ["sha256:00", "sha512:00", "../../etc/passwd", "sha256:../../../../../../../../../../../../../../../../../etc/shadow0"]
    {
        let error = change(&|members| {
            let mut index: Value = serde_json::from_str(&text(members, "index.json")).unwrap();
            index["manifests"][0]["digest"] = digest.into();
            members.insert("index.json".into(), index.to_string().into_bytes());
        });
        assert!(matches!(error, Error::BadDigest(_)), "{error}");
    }
    // Docker would load one image, an OCI reader the other
    let error = change(&|members| {
        let other = Forged::new(vec![layer(&[("y", Regular, "", b"2")])]).members();
        for (name, content) in other {
            if name != "index.json" {
                members.insert(name, content);
            }
        }
    });
    assert!(matches!(error, Error::TwoFaced { .. }), "{error}");
    let error = change(&|members| {
        let mut saved: Value = serde_json::from_str(&text(members, "manifest.json")).unwrap();
        let one = saved[0].clone();
        saved.as_array_mut().unwrap().push(one);
        members.insert("manifest.json".into(), saved.to_string().into_bytes());
    });
    assert!(matches!(error, Error::ImageCount(2)), "{error}");
}

#[test]
fn other_platforms_and_compressions() {
    let world = World::new();
    let layers = || vec![layer(&[("x", Regular, "", b"1")])];
    for (os, processor) in [("windows", architecture()), ("linux", "s390x"), ("", "")] {
        let error = world.refused(&Forged { platform: (os.into(), processor.into()), ..Forged::new(layers()) }.tar());
        assert!(matches!(error, Error::WrongPlatform { .. }), "{error}");
    }
    let zipped = Forged { gzip: true, ..Forged::new(layers()) };
    let store = world.store();
    let image = store.load(&world.write(&zipped.tar()), None).unwrap();
    assert_eq!(std::fs::read(store.rootfs(&image).join("x")).unwrap(), b"1");
    store.remove(&image).unwrap();
    // gzip that the manifest does not promise
    let mut members = zipped.members();
    let manifest = members.iter().find(|(_, content)| String::from_utf8_lossy(content).contains("tar+gzip")).unwrap().0.clone();
    let changed = String::from_utf8(members.remove(&manifest).unwrap()).unwrap().replace("tar+gzip", "tar+zstd").into_bytes();
    let digest = hex::encode(Sha256::digest(&changed));
    let index = json!({"manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{digest}"), "size": changed.len()}]});
    members.insert(format!("blobs/sha256/{digest}"), changed);
    members.insert("index.json".into(), index.to_string().into_bytes());
    members.remove("manifest.json");
    let error = world.refused(&tar_of(&members.into_iter().collect::<Vec<_>>()));
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
}

#[test]
fn layers_cannot_leave_the_root() {
    let world = World::new();
    let outside = world.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    let out = outside.display().to_string();
    let absolute = format!("{out}/kept");
    let climb = "../../../../outside";
    let cases: Vec<Vec<Plain>> = vec![
        vec![("../outside/new", Regular, "", b"1")],
        vec![("a/../../outside/new", Regular, "", b"1")],
        vec![("l", Symlink, climb, b""), ("l/new", Regular, "", b"1")],
        vec![("l", Symlink, &out, b""), ("l/new", Regular, "", b"1")],
        vec![("l", Symlink, &absolute, b""), ("l", Regular, "", b"1")],
        vec![("l", Symlink, climb, b""), ("l/kept", Link, "l/kept", b"")],
        vec![("h", Link, "../../outside/kept", b"")],
        vec![("h", Link, &absolute, b"")],
        vec![("l", Symlink, &out, b""), ("h", Link, "l/kept", b"")],
        vec![("l", Symlink, &absolute, b""), ("h", Link, "l", b"")],
        vec![("l", Symlink, climb, b""), ("l/.wh.kept", Regular, "", b"")],
        vec![("l", Symlink, climb, b""), ("l/.wh..wh..opq", Regular, "", b"")],
        vec![(".wh...", Regular, "", b"")],
        vec![(".wh..", Regular, "", b"")],
        vec![("l", Symlink, "/proc/self/cwd", b""), ("l/new", Regular, "", b"1")],
        vec![("l", Symlink, "l", b""), ("l/new", Regular, "", b"1")],
        vec![("f", Regular, "", b"1"), ("f/new", Regular, "", b"1")],
    ];
    for entries in cases {
        let store = world.store();
        let loaded = store.load(&world.write(&Forged::new(vec![layer(&entries)]).tar()), None);
        // either refused, or it stayed inside its root: outside nothing changes
        let names: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["kept"], "{entries:?}");
        let kept = std::fs::metadata(outside.join("kept")).unwrap();
        assert_eq!((kept.len(), kept.nlink()), (4, 1), "{entries:?}");
        match loaded {
            Ok(image) => assert!(store.remove(&image).unwrap()),
            Err(Error::UnsafePath(_)) => assert_eq!(world.rest(), 0, "{entries:?}"),
            Err(error) => panic!("{entries:?}: {error}"),
        }
    }
}

#[test]
fn special_files_and_bombs() {
    let world = World::new();
    for kind in [Char, Block, Fifo] {
        let error = world.refused(&Forged::new(vec![layer(&[("dev/x", kind, "", b"")])]).tar());
        assert!(matches!(error, Error::SpecialFile { .. }), "{error}");
    }
    for (kind, what) in [(EntryType::GNULongName, "path"), (EntryType::GNULongLink, "path"), (EntryType::XHeader, "PAX")] {
        let error = world.refused(&Forged::new(vec![layer(&[("x", kind, "", &vec![b'a'; 100_000])])]).tar());
        assert!(matches!(&error, Error::TooLarge { what: limit, .. } if limit.contains(what)), "{error}");
    }
    let error = world.refused(&Forged::new(vec![layer(&[("x", EntryType::GNUSparse, "", b"")])]).tar());
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    let error = world
        .refused(&Forged::new(vec![layer(&[("x", EntryType::XHeader, "", b"15 size=100000\n"), ("y", Regular, "", b"")])]).tar());
    assert!(matches!(error, Error::Unsupported(_)), "{error}");

    let limits = ImageLimits {
        unpacked_bytes_max: 1 << 20,
        files_max: 50,
        layers_max: 3,
        members_max: 20,
        tar_bytes_max: 1 << 22,
        json_bytes_max: 4096,
    };
    let refuse = |forged: &Forged| {
        let error = world.store_with(limits).load(&world.write(&forged.tar()), None).expect_err("too large");
        assert_eq!(world.rest(), 0);
        error
    };
    // 100 MB of zeros are 100 kB in the tar
    let zeros = vec![0; 100 << 20];
    let error = refuse(&Forged { gzip: true, ..Forged::new(vec![layer(&[("x", Regular, "", &zeros)])]) });
    assert!(matches!(error, Error::TooLarge { what: "unpacked bytes", .. }), "{error}");
    // and so are 100 MB behind the end of a layer
    let mut padded = layer(&[("x", Regular, "", b"1")]);
    padded.extend(&zeros);
    let error = refuse(&Forged { gzip: true, ..Forged::new(vec![padded]) });
    assert!(matches!(error, Error::TooLarge { what: "unpacked bytes", .. }), "{error}");
    // a header that promises more than there is
    let mut promising = layer(&[("x", Regular, "", b"1")]);
    promising[124..136].copy_from_slice(b"77777777777\0");
    promising[148..156].copy_from_slice(b"        ");
    let sum: u32 = promising[..512].iter().map(|byte| u32::from(*byte)).sum();
    promising[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let error = refuse(&Forged::new(vec![promising]));
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let names: Vec<String> = (0..60).map(|number| format!("f{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), Regular, "", &b""[..])).collect();
    let error = refuse(&Forged::new(vec![layer(&many)]));
    assert!(matches!(error, Error::TooLarge { what: "files", .. }), "{error}");
    let stack: Vec<_> = (0..4).map(|number: u8| layer(&[("x", Regular, "", &[number])])).collect();
    let error = refuse(&Forged::new(stack));
    assert!(matches!(error, Error::TooLarge { what: "layers", .. }), "{error}");
    let crowd: Vec<_> = (0..100).map(|number| (format!("m{number}"), vec![])).collect();
    let error = world.store_with(limits).load(&world.write(&tar_of(&crowd)), None).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "members", .. }), "{error}");
    let error =
        world.store_with(limits).load(&world.write(&tar_of(&[("index.json".into(), vec![b' '; 5000])])), None).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "JSON bytes", .. }), "{error}");
    let error = world.store_with(limits).load(&world.write(&vec![0; 5 << 20]), None).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "tar bytes", .. }), "{error}");
}

#[test]
fn layers_stack() {
    let world = World::new();
    let store = world.store();
    let bottom = layer(&[
        ("usr/", Directory, "", b""),
        ("usr/lib/", Directory, "", b""),
        ("lib", Symlink, "usr/lib", b""),
        ("gone", Regular, "", b"1"),
        ("tree/a/b", Regular, "", b"1"),
        ("opaque/old", Regular, "", b"1"),
        ("opaque/sub/old", Regular, "", b"1"),
        ("file", Regular, "", b"old"),
        ("becomes-directory", Regular, "", b"1"),
        ("becomes-file/x", Regular, "", b"1"),
        ("set-id", Regular, "", b"1"),
        ("abs", Symlink, "/usr", b""),
    ]);
    let top = layer(&[
        ("opaque/new", Regular, "", b"2"),
        ("opaque/sub/new", Regular, "", b"2"),
        ("opaque/.wh..wh..opq", Regular, "", b""),
        (".wh.gone", Regular, "", b""),
        (".wh.tree", Regular, "", b""),
        (".wh.never-was", Regular, "", b""),
        ("lib/through-link", Regular, "", b"2"),
        ("abs/through-absolute-link", Regular, "", b"2"),
        ("file", Regular, "", b"new"),
        ("hard", Link, "file", b""),
        ("becomes-directory/", Directory, "", b""),
        ("becomes-directory/x", Regular, "", b"2"),
        ("becomes-file", Regular, "", b"2"),
    ]);
    let image = store.load(&world.write(&Forged::new(vec![bottom, top]).tar()), None).unwrap();
    let root = store.rootfs(&image);
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let exists = |path: &str| std::fs::symlink_metadata(root.join(path)).is_ok();
    assert!(!exists("gone") && !exists("tree") && !exists("opaque/old") && !exists(".wh.gone") && !exists("opaque/.wh..wh..opq"));
    assert!(exists("opaque/sub/old"), "an opaque directory keeps a directory that its layer brings");
    assert_eq!(read("opaque/new").as_deref(), Some("2"));
    assert_eq!(read("opaque/sub/new").as_deref(), Some("2"));
    assert_eq!(read("usr/lib/through-link").as_deref(), Some("2"));
    assert_eq!(read("usr/through-absolute-link").as_deref(), Some("2"), "an absolute link is resolved inside the root");
    assert_eq!(read("file").as_deref(), Some("new"));
    assert_eq!(std::fs::metadata(root.join("hard")).unwrap().nlink(), 2);
    assert_eq!(read("becomes-directory/x").as_deref(), Some("2"));
    assert_eq!(read("becomes-file").as_deref(), Some("2"));
    assert_eq!(std::fs::metadata(root.join("set-id")).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn an_unfinished_entry_is_swept_away() {
    let world = World::new();
    drop(world.store());
    let rest = world.directory.path().join("images/.unfinished-1-2/rootfs");
    std::fs::create_dir_all(&rest).unwrap();
    std::fs::write(world.directory.path().join("images/.unfinished-1-3"), "x").unwrap();
    drop(world.store());
    assert_eq!(world.rest(), 0);
}

#[test]
fn a_stored_configuration_that_was_changed_is_noticed() {
    let (files, config) = sample();
    let (image, bytes) = packed(&files, &config);
    let world = World::new();
    let store = world.store();
    store.load(&world.write(&bytes), None).unwrap();
    let path = world.directory.path().join("images").join(image.hex()).join("config.json");
    std::fs::write(&path, "{\"rootfs\":{\"diff_ids\":[]}}").unwrap();
    assert!(matches!(store.config(&image), Err(Error::DigestMismatch { .. })));
    assert_eq!(store.config(&ImageId::from_bytes([9; 32])).unwrap(), None);
    assert!(Path::new(&path).exists());
}
