//! Where the secret key of a process is, as its configuration says it.

use std::fmt;
use std::path::{Path, PathBuf};

use contracts::envelope::Keypair;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `secret_key = { file = "PATH" }` (64 hexadecimal digits or 32 raw bytes) or `secret_key = { hex = "…" }`.
#[derive(Clone)]
pub enum SecretKey {
    File(PathBuf),
    Bytes([u8; 32]),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} cannot be read")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is no secret key: 64 hexadecimal digits or 32 bytes")]
    Form { path: PathBuf },
}

impl SecretKey {
    /// # Errors
    /// If the file cannot be read or holds no key.
    pub fn load(&self) -> Result<Keypair, Error> {
        match self {
            Self::Bytes(bytes) => Ok(Keypair::from_secret(bytes)),
            Self::File(path) => read(path).map(|bytes| Keypair::from_secret(&bytes)),
        }
    }
}

fn read(path: &Path) -> Result<[u8; 32], Error> {
    let content = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if let Ok(raw) = <[u8; 32]>::try_from(content.as_slice()) {
        return Ok(raw);
    }
    let mut bytes = [0; 32];
    hex::decode_to_slice(content.trim_ascii(), &mut bytes).map_err(|_| Error::Form { path: path.to_owned() })?;
    Ok(bytes)
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "SecretKey({})", path.display()),
            Self::Bytes(_) => f.write_str("SecretKey(hidden)"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Text {
    File(PathBuf),
    Hex(String),
}

impl<'de> Deserialize<'de> for SecretKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Text::deserialize(deserializer)? {
            Text::File(path) => Ok(Self::File(path)),
            Text::Hex(digits) => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(&digits, &mut bytes)
                    .map_err(|_| serde::de::Error::custom("a secret key has 64 hexadecimal digits"))?;
                Ok(Self::Bytes(bytes))
            }
        }
    }
}

/// For showing a configuration: never the secret.
impl Serialize for SecretKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::File(path) => map.serialize_entry("file", path)?,
            Self::Bytes(_) => map.serialize_entry("hex", "(hidden)")?,
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_file_are_one_key_and_others_are_refused() {
        let directory = std::env::temp_dir().join(format!("antirio-secret-key-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("key");
        let loaded = |content: &[u8]| {
            std::fs::write(&path, content).expect("written");
            SecretKey::File(path.clone()).load().map(|keypair| keypair.secret())
        };
        assert_eq!(loaded(format!("{}\n", hex::encode([7; 32])).as_bytes()).expect("digits"), [7; 32]);
        assert_eq!(loaded(&[7; 32]).expect("raw"), [7; 32]);
        for bad in [&[7; 31][..], b"", b"07", &[b'z'; 64]] {
            assert!(matches!(loaded(bad), Err(Error::Form { .. })), "{bad:?}");
        }
        std::fs::remove_dir_all(&directory).expect("removed");
        assert!(matches!(SecretKey::File(path).load(), Err(Error::Read { .. })));
        let shown = SecretKey::Bytes([7; 32]);
        assert!(!format!("{shown:?}{}", serde_json::to_string(&shown).expect("JSON")).contains("07"));
    }
}
