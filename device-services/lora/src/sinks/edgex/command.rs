//! Commands, by whichever way they come: reading gives what was heard last, setting queues a downlink.

use serde_json::{Map, Value};

use super::{
    event::{self, Event, SOURCE},
    registry::{Known, Registry},
};
use crate::sinks::downlink::{Content, Downlinks, Request, new_id};

/// Command that every device takes: `{"downlink": "<port>:<payload in hexadecimal digits>"}`.
pub const DOWNLINK: &str = "downlink";

/// Why a command is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no device {0} exists")]
    NoDevice(String),
    #[error("device {device} has no command {command}")]
    NoCommand { device: String, command: String },
    #[error("{0} cannot be read")]
    WriteOnly(String),
    #[error("{0} cannot be set")]
    ReadOnly(String),
    #[error("the service is locked")]
    ServiceLocked,
    #[error("device {0} is locked")]
    DeviceLocked(String),
    #[error("device {0} is down")]
    DeviceDown(String),
    #[error("device {0} has not been heard yet")]
    NotHeard(String),
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The status of the answer.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Error::NoDevice(_) | Error::NoCommand { .. } => 404,
            Error::WriteOnly(_) | Error::ReadOnly(_) => 405,
            Error::ServiceLocked | Error::DeviceLocked(_) | Error::DeviceDown(_) => 423,
            Error::Invalid(_) => 400,
            Error::NotHeard(_) | Error::Failed(_) => 500,
        }
    }
}

/// Does commands; cheap to clone.
#[derive(Debug, Clone)]
pub struct Commands {
    registry: Registry,
    downlinks: Downlinks,
}

impl Commands {
    /// For the devices of a registry.
    #[must_use]
    pub fn new(registry: Registry, downlinks: Downlinks) -> Self {
        Commands { registry, downlinks }
    }

    /// The devices.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    fn device(&self, name: &str) -> Result<Known, Error> {
        if self.registry.is_locked() {
            return Err(Error::ServiceLocked);
        }
        let known = self.registry.find(name).ok_or_else(|| Error::NoDevice(name.to_owned()))?;
        if known.standing.is_locked {
            return Err(Error::DeviceLocked(name.to_owned()));
        }
        if known.standing.is_down { Err(Error::DeviceDown(name.to_owned())) } else { Ok(known) }
    }

    /// What was heard last: all of it for the command `uplink`, else of one resource.
    ///
    /// # Errors
    /// [`Error`].
    pub fn get(&self, device: &str, command: &str) -> Result<Event, Error> {
        let known = self.device(device)?;
        let resource = self.registry.resource(&known.profile, command);
        if command == DOWNLINK || resource.is_some_and(|resource| !resource.readable) {
            return Err(Error::WriteOnly(command.to_owned()));
        }
        let is_known = |event: &Event| event.readings.iter().any(|reading| reading.resource_name == command);
        match known.newest {
            Some(event) if command == SOURCE => Ok(event),
            Some(event) if is_known(&event) => Ok(of_resource(event, command)),
            None if command == SOURCE || resource.is_some() => Err(Error::NotHeard(device.to_owned())),
            Some(_) if resource.is_some() => Err(Error::Failed(format!("the last uplink of {device} has no {command}"))),
            Some(_) | None => Err(Error::NoCommand { device: device.to_owned(), command: command.to_owned() }),
        }
    }

    /// Sets resources: `settings` are those of `command`. Returns when the downlink is queued.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set(&self, device: &str, command: &str, settings: &Map<String, Value>) -> Result<(), Error> {
        let known = self.device(device)?;
        let (f_port, content) = if command == DOWNLINK {
            let (port, payload) = raw(settings).map_err(Error::Invalid)?;
            (Some(port), Content::Bytes(payload))
        } else {
            (None, Content::Values(self.values(device, &known, command, settings)?))
        };
        let request = Request { id: new_id(), device: known.eui, f_port, content, confirmed: false, expires_at_ms: None };
        self.downlinks.queue(request).await.map(drop).map_err(Error::Failed)
    }

    fn values(
        &self,
        device: &str,
        known: &Known,
        command: &str,
        settings: &Map<String, Value>,
    ) -> Result<Map<String, Value>, Error> {
        let no_command = || Error::NoCommand { device: device.to_owned(), command: command.to_owned() };
        if command == SOURCE {
            return Err(Error::ReadOnly(command.to_owned()));
        }
        let resource = match self.registry.resource(&known.profile, command) {
            Some(resource) => resource,
            None if is_read(known, command) => return Err(Error::ReadOnly(command.to_owned())),
            None => return Err(no_command()),
        };
        if !resource.writable {
            return Err(Error::ReadOnly(command.to_owned()));
        }
        let value = settings.get(command).ok_or_else(|| Error::Invalid(format!("the body has no {command}")))?;
        let value = event::setting(command, resource, value).map_err(Error::Invalid)?;
        Ok(Map::from_iter([(command.to_owned(), value)]))
    }
}

fn is_read(known: &Known, command: &str) -> bool {
    known.newest.as_ref().is_some_and(|event| event.readings.iter().any(|reading| reading.resource_name == command))
}

/// The part of an event that is of one resource; its id follows from both.
fn of_resource(mut event: Event, resource: &str) -> Event {
    event.id = event.id.parse().map(|id| event::derived(id, &format!("event {resource}"))).unwrap_or_default();
    event.readings.retain(|reading| reading.resource_name == resource);
    resource.clone_into(&mut event.source_name);
    event
}

/// `{"downlink": "10:0102ff"}`.
fn raw(settings: &Map<String, Value>) -> Result<(u8, Vec<u8>), String> {
    let form = || format!("{DOWNLINK} is a text like 10:0102ff, port 1 to 223 and payload");
    let text = settings.get(DOWNLINK).and_then(Value::as_str).ok_or_else(form)?;
    let (port, payload) = text.split_once(':').ok_or_else(form)?;
    let port = port.parse().ok().filter(|port| (1..=223).contains(port)).ok_or_else(form)?;
    Ok((port, hex::decode(payload).map_err(|_| form())?))
}
