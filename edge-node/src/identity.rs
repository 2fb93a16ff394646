//! The node's key and its signed record.

use std::io;
use std::path::{Path, PathBuf};

use contracts::envelope::{Envelope, Keypair};
use contracts::node_record::NodeRecord;
use contracts::sealed::UnsealingKey;

/// Name of the secret key file in the state directory: 64 hexadecimal digits.
pub const KEY_FILE: &str = "node.key";
/// Name of the record file in the state directory.
pub const RECORD_FILE: &str = "node-record.json";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: cannot be read or written")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: a key file has 64 hexadecimal digits")]
    Key { path: PathBuf },
    #[error("{path}: {reason}")]
    Record { path: PathBuf, reason: String },
    #[error("the machine has no randomness to give")]
    Randomness,
}

/// Who this node is.
#[derive(Debug, Clone)]
pub struct Identity {
    pub keypair: Keypair,
    pub unsealing: UnsealingKey,
}

/// Reads a key file, or makes one with mode 0600 from the machine's randomness.
///
/// # Errors
/// [`Error`].
pub fn load_or_create_key(path: &Path) -> Result<Keypair, Error> {
    let file = |source| Error::File { path: path.to_owned(), source };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let mut secret = [0; 32];
            hex::decode_to_slice(text.trim(), &mut secret).map_err(|_| Error::Key { path: path.to_owned() })?;
            Ok(Keypair::from_secret(&secret))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).map_err(|_| Error::Randomness)?;
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(file)?;
            }
            kit::file::replace(path, format!("{}\n", hex::encode(secret)).as_bytes(), 0o600).map_err(file)?;
            Ok(Keypair::from_secret(&secret))
        }
        Err(error) => Err(file(error)),
    }
}

impl Identity {
    /// From the state directory; made there at first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load_or_create(state_directory: &Path) -> Result<Self, Error> {
        let keypair = load_or_create_key(&state_directory.join(KEY_FILE))?;
        let unsealing = UnsealingKey::derive(&keypair.secret());
        Ok(Self { keypair, unsealing })
    }
}

/// Signs a record by owner and node and keeps it in the state directory.
///
/// # Errors
/// The file cannot be written, or the record breaks a limit.
pub fn write_record(state_directory: &Path, record: &NodeRecord, owner: &Keypair, node: &Keypair) -> Result<Envelope, Error> {
    let path = state_directory.join(RECORD_FILE);
    let mut envelope = Envelope::sign(record, owner);
    envelope.cosign(node);
    NodeRecord::verify(&envelope).map_err(|e| Error::Record { path: path.clone(), reason: e.to_string() })?;
    let json = serde_json::to_vec_pretty(&envelope).map_err(|e| Error::Record { path: path.clone(), reason: e.to_string() })?;
    kit::file::replace(&path, &json, 0o644).map_err(|source| Error::File { path, source })?;
    Ok(envelope)
}

/// The record in the state directory, verified.
///
/// # Errors
/// There is none, or it does not verify.
pub fn read_record(state_directory: &Path) -> Result<Envelope, Error> {
    let path = state_directory.join(RECORD_FILE);
    let json = std::fs::read(&path).map_err(|source| Error::File { path: path.clone(), source })?;
    let envelope: Envelope =
        serde_json::from_slice(&json).map_err(|e| Error::Record { path: path.clone(), reason: e.to_string() })?;
    NodeRecord::verify(&envelope).map_err(|e| Error::Record { path, reason: e.to_string() })?;
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("temp dir");
        let first = Identity::load_or_create(directory.path()).expect("made");
        let again = Identity::load_or_create(directory.path()).expect("read");
        assert_eq!(first.keypair.node_id(), again.keypair.node_id());
        let path = directory.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "not a key").expect("write");
        assert!(matches!(Identity::load_or_create(directory.path()), Err(Error::Key { .. })));
    }
}
