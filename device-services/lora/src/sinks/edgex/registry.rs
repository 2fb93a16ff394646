//! What is known of the devices: profile, whether they are locked or down, and the newest event of each.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Deserialize;
use tenant::DevEui;

use super::{Resource, Settings, event::Event};
use crate::config::Config;

/// What core-metadata says of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Locked by an administrator.
    pub is_locked: bool,
    /// Known not to work.
    pub is_down: bool,
}

/// A device as core-metadata writes it, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Described {
    pub name: String,
    #[serde(default)]
    pub admin_state: String,
    #[serde(default)]
    pub operating_state: String,
}

/// A device.
#[derive(Debug, Clone)]
pub struct Known {
    pub eui: DevEui,
    pub profile: String,
    pub codec: String,
    pub tags: BTreeMap<String, String>,
    pub standing: Standing,
    pub newest: Option<Event>,
}

#[derive(Debug)]
struct State {
    devices: BTreeMap<String, Known>,
    is_locked: bool,
}

/// Shared by all parts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    settings: Arc<Settings>,
    state: Arc<Mutex<State>>,
}

impl Registry {
    /// The devices of a configuration, unlocked.
    #[must_use]
    pub fn new(settings: Arc<Settings>, config: &Config) -> Self {
        let standing = Standing { is_locked: false, is_down: false };
        let known = config.devices.iter().map(|(eui, device)| {
            let (profile, codec, tags) = (device.profile.clone(), device.codec.name().to_owned(), device.tags.clone());
            (device.name.clone(), Known { eui: *eui, profile, codec, tags, standing, newest: None })
        });
        let state = State { devices: known.collect(), is_locked: false };
        Registry { settings, state: Arc::new(Mutex::new(state)) }
    }

    /// The part of the configuration.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device by name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Known> {
        self.lock().devices.get(name).cloned()
    }

    /// All devices, by name.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Known)> {
        self.lock().devices.iter().map(|(name, known)| (name.clone(), known.clone())).collect()
    }

    /// A resource of a profile.
    #[must_use]
    pub fn resource(&self, profile: &str, name: &str) -> Option<&Resource> {
        self.settings.profiles.get(profile)?.resources.get(name)
    }

    /// Keeps an event as the device's newest.
    pub fn heard(&self, device: &str, event: &Event) {
        if let Some(known) = self.lock().devices.get_mut(device)
            && known.newest.as_ref().is_none_or(|newest| newest.origin <= event.origin)
        {
            known.newest = Some(event.clone());
        }
    }

    /// Takes what core-metadata says of a device; devices that are not in the configuration do not matter.
    pub fn describe(&self, described: &Described) {
        if let Some(known) = self.lock().devices.get_mut(&described.name) {
            known.standing =
                Standing { is_locked: described.admin_state == "LOCKED", is_down: described.operating_state == "DOWN" };
        }
    }

    /// Takes whether the service itself is locked.
    pub fn set_locked(&self, is_locked: bool) {
        self.lock().is_locked = is_locked;
    }

    /// Whether the service itself is locked.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock().is_locked
    }
}
