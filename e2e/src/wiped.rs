//! What an insurer must not have after a contract: keys of devices that are not its own, in any form, and what it could open to get them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Bytes of a key.
const KEY_BYTES: usize = 16;
/// Fields of sealed content, and names of sealed records: who has the node's key can open them.
const SEALED: [&[u8]; 2] = [b"\"encapsulated\"", b".record."];

/// Keys by which a file is searched, raw and as hexadecimal digits.
#[derive(Debug, Default)]
pub struct Keys {
    raw: BTreeSet<[u8; KEY_BYTES]>,
    /// First bytes of them: most places of a file need no further look.
    first: BTreeSet<u8>,
}

impl Keys {
    /// All keys of a provisioning list.
    pub fn of(provisioning: &serde_json::Value) -> anyhow::Result<Self> {
        let mut keys = Self::default();
        for device in provisioning["devices"].as_array().context("a provisioning list has devices")? {
            let named = [&device["nwk_s_key"], &device["app_s_key"], &device["otaa"]["app_key"]];
            for text in named.into_iter().filter_map(serde_json::Value::as_str) {
                let key = u128::from_str_radix(text, 16).context("a key of hexadecimal digits")?.to_be_bytes();
                keys.first.insert(key[0]);
                keys.raw.insert(key);
            }
        }
        anyhow::ensure!(!keys.raw.is_empty(), "a provisioning list has keys");
        Ok(keys)
    }

    /// What is found in some bytes, in words.
    fn find(&self, bytes: &[u8]) -> Vec<&'static str> {
        let mut found = Vec::new();
        let is_raw = |window: &[u8]| {
            self.first.contains(&window[0]) && <[u8; KEY_BYTES]>::try_from(window).is_ok_and(|key| self.raw.contains(&key))
        };
        if bytes.windows(KEY_BYTES).any(is_raw) {
            found.push("a key");
        }
        let is_text = |window: &[u8]| {
            let digits = std::str::from_utf8(window).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
            digits.and_then(|text| u128::from_str_radix(text, 16).ok()).is_some_and(|key| self.raw.contains(&key.to_be_bytes()))
        };
        if bytes.windows(2 * KEY_BYTES).any(is_text) {
            found.push("a key in digits");
        }
        for needle in SEALED {
            if bytes.windows(needle.len()).any(|window| window == needle) {
                found.push("something sealed");
            }
        }
        found
    }

    /// What is found below a directory: file and what. Files that end meanwhile are passed over.
    pub fn find_below(&self, directory: &Path) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
                let path: PathBuf = entry?.path();
                let kind = match path.symlink_metadata() {
                    Ok(metadata) => metadata.file_type(),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error.into()),
                };
                if kind.is_dir() {
                    directories.push(path);
                } else if kind.is_file() {
                    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
                    found.extend(self.find(&bytes).into_iter().map(|what| format!("{what} in {}", path.display())));
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_every_form() {
        let list = serde_json::json!({"devices": [{"nwk_s_key": "000102030405060708090a0b0c0d0e0f",
            "otaa": {"app_key": "2b7e151628aed2a6abf7158809cf4f3c"}}]});
        let keys = Keys::of(&list).unwrap();
        let raw: Vec<u8> = (0..16).collect();
        assert_eq!(keys.find(&[b"xx", &raw[..], b"yy"].concat()), ["a key"]);
        assert_eq!(keys.find(b"..2b7e151628aed2a6abf7158809cf4f3c.."), ["a key in digits"]);
        assert_eq!(keys.find(b"{\"encapsulated\": \"\"}"), ["something sealed"]);
        assert!(keys.find(&raw[..15]).is_empty() && keys.find(b"2b7e151628aed2a6abf7158809cf4f3d").is_empty());
        let directory = std::env::temp_dir().join(format!("antirio-wiped-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("below")).unwrap();
        std::fs::write(directory.join("below/file"), &raw).unwrap();
        let found = keys.find_below(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(found.unwrap().len(), 1);
        assert!(Keys::of(&serde_json::json!({"devices": []})).is_err());
    }
}
