//! Pins say what is kept and why; everything that no pin reaches is garbage.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::Path,
    sync::{MutexGuard, PoisonError},
};

use cid::Cid;
use serde::{Deserialize, Serialize};

use crate::{
    Error, LABEL_BYTES_MAX, PINS_MAX,
    content::{digest_of, normalise},
    dag::Walk,
    disk::replace_file,
    store::{BlockStore, Inner},
};

const FILE: &str = "pins.json";

/// A reason to keep the DAG below `cid`. The same content may be pinned under several labels and is kept until the last is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin {
    /// Root of what is kept.
    pub cid: Cid,
    /// Why, in the words of whoever pinned it, as the id of a contract.
    pub label: String,
}

/// What a garbage collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blocks removed.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// All pins, as they are on disk.
#[derive(Debug, Default)]
pub(crate) struct Pins(BTreeSet<Pin>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPin {
    cid: String,
    label: String,
}

impl Pins {
    pub(crate) fn load(root: &Path) -> Result<Self, Error> {
        let bytes = match fs::read(root.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Pins::default()),
            Err(source) => return Err(Error::Io { action: "read the list of pins", source }),
        };
        let stored: Vec<StoredPin> = serde_json::from_slice(&bytes).map_err(Error::Pins)?;
        let pins = stored.into_iter().map(|pin| Ok(Pin { cid: crate::parse_cid(&pin.cid)?, label: pin.label }));
        pins.collect::<Result<_, Error>>().map(Pins)
    }

    fn save(&self, root: &Path) -> Result<(), Error> {
        let stored: Vec<_> = self.0.iter().map(|pin| StoredPin { cid: pin.cid.to_string(), label: pin.label.clone() }).collect();
        replace_file(root, FILE, &serde_json::to_vec(&stored).map_err(Error::Pins)?)
    }
}

pub(crate) fn check_label(label: &str) -> Result<String, Error> {
    match label.len() {
        0 => Err(Error::PinRefused("its label is empty")),
        1..=LABEL_BYTES_MAX => Ok(label.to_owned()),
        _ => Err(Error::PinRefused("its label is too long")),
    }
}

impl BlockStore {
    /// Keeps the DAG below `cid`, also the parts of it that are yet to come. On disk when it returns; repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error::PinRefused`], [`Error::Unsupported`], [`Error::Io`].
    pub async fn pin(&self, cid: &Cid, label: &str) -> Result<(), Error> {
        digest_of(cid)?;
        let (cid, label) = (normalise(cid), check_label(label)?);
        let _writing = self.begin_writing().await;
        self.run(move |inner| inner.pin(cid, label)).await
    }

    /// Gives up one reason to keep `cid`. False if there was no such pin.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn unpin(&self, cid: &Cid, label: &str) -> Result<bool, Error> {
        let pin = Pin { cid: normalise(cid), label: label.to_owned() };
        self.run(move |inner| {
            let mut pins = inner.pins();
            if !pins.0.remove(&pin) {
                return Ok(false);
            }
            if let Err(error) = pins.save(&inner.root) {
                pins.0.insert(pin);
                return Err(error);
            }
            Ok(true)
        })
        .await
    }

    /// All pins, ordered.
    pub fn pins(&self) -> Vec<Pin> {
        self.inner.pins().0.iter().cloned().collect()
    }

    /// Removes every block that no pin reaches. A damaged or absent inner node keeps nothing below it.
    ///
    /// # Errors
    /// [`Error::Busy`] while content is being written, [`Error::Malformed`], [`Error::Io`].
    pub async fn collect_garbage(&self) -> Result<Collected, Error> {
        let alone = std::sync::Arc::clone(&self.inner.writers).try_write_owned().map_err(|_| Error::Busy)?;
        self.run(move |inner| {
            let collected = inner.collect_garbage();
            drop(alone);
            collected
        })
        .await
    }
}

impl Inner {
    pub(crate) fn pin(&self, cid: Cid, label: String) -> Result<(), Error> {
        let pin = Pin { cid, label };
        let mut pins = self.pins();
        if pins.0.contains(&pin) {
            return Ok(());
        }
        if pins.0.len() >= PINS_MAX {
            return Err(Error::PinRefused("the store has too many pins"));
        }
        pins.0.insert(pin.clone());
        if let Err(error) = pins.save(&self.root) {
            pins.0.remove(&pin);
            return Err(error);
        }
        Ok(())
    }

    fn collect_garbage(&self) -> Result<Collected, Error> {
        let mut live = BTreeSet::new();
        let roots: BTreeSet<Cid> = self.pins().0.iter().map(|pin| pin.cid).collect();
        for root in roots {
            let mut walk = Walk::new(root);
            while let Some(cid) = walk.next() {
                live.insert(digest_of(&cid)?);
                match walk.step(&self.disk, &cid) {
                    Ok(_) => {}
                    // A pin whose content makes no sense keeps what was reached of it and must not stop the collection of the rest.
                    Err(Error::Malformed { .. } | Error::TooDeep(_) | Error::Unsupported { .. }) => {}
                    Err(other) => return Err(other),
                }
            }
        }
        let mut garbage = Vec::new();
        self.disk.for_each(|digest, _| {
            if !live.contains(&digest) {
                garbage.push(digest);
            }
            Ok(())
        })?;
        let mut collected = Collected::default();
        for digest in garbage {
            collected.bytes += self.disk.remove(&digest)?;
            collected.blocks += 1;
        }
        Ok(collected)
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
