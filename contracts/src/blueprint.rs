//! What is to run: a subset of a compose file by content id, plus what it needs and when it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::envelope::Invalid;
use crate::resources::Resources;

/// At most this many services in one blueprint.
pub const SERVICES_MAX: usize = 16;
/// Names, commands and values are at most this long.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// At most this many environment variables, arguments or volumes per service.
pub const ITEMS_MAX: usize = 64;

/// The services of one contract and what they need together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blueprint {
    pub services: Vec<Service>,
    pub needs: Resources,
    /// Capabilities of the node that runs it, e.g. `lora:EU868`.
    pub capabilities: BTreeSet<String>,
    pub activation: Activation,
}

/// When the provider starts the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// When it gained custody because the customer is off line.
    Offline,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Lower-case letters, digits and hyphens, at most 32.
    pub name: String,
    /// CIDv1 (base32) of the image tar.
    pub image: String,
    /// SHA-256 of the image's configuration blob: the engine's image id, `sha256:…`.
    pub image_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Every name once: of two values readers could see different ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "names_once")]
    pub environment: BTreeMap<String, String>,
    /// Services of this blueprint that start before this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    pub memory_bytes_max: u64,
    pub cpu_millis_max: u64,
    pub pids_max: u64,
}

fn names_once<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("names and values")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, value)) = entries.next_entry::<String, String>()? {
                if map.insert(name, value).is_some() {
                    return Err(serde::de::Error::custom("a name is there twice"));
                }
            }
            Ok(map)
        }
    }

    deserializer.deserialize_map(Names)
}

impl Blueprint {
    /// # Errors
    /// The field that breaks a limit, an unknown or cyclic dependency.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=SERVICES_MAX).contains(&self.services.len()), "services", "one to sixteen services")?;
        Invalid::unless(self.needs.is_valid(), "needs", "a number is too large or an interface is named twice")?;
        let short = |text: &String| text.len() <= 64;
        Invalid::unless(
            self.capabilities.len() <= ITEMS_MAX && self.capabilities.iter().all(short),
            "capabilities",
            "too many or too long",
        )?;
        self.services.iter().try_for_each(Service::validate)?;
        let names: BTreeSet<_> = self.services.iter().map(|s| &s.name).collect();
        Invalid::unless(names.len() == self.services.len(), "services", "two services have one name")?;
        self.start_order().map(|_| ())
    }

    /// The services in an order in which each stands behind those it depends on; else by position in the list.
    ///
    /// # Errors
    /// A dependency is unknown or goes in a circle.
    pub fn start_order(&self) -> Result<Vec<&Service>, Invalid> {
        let mut ordered: Vec<&Service> = Vec::with_capacity(self.services.len());
        while ordered.len() < self.services.len() {
            let started = |name: &String| ordered.iter().any(|s| &s.name == name);
            let next = self.services.iter().find(|s| !started(&s.name) && s.depends_on.iter().all(started));
            ordered.push(next.ok_or(Invalid { field: "depends_on", reason: "a dependency is unknown or goes in a circle" })?);
        }
        Ok(ordered)
    }
}

impl Service {
    fn validate(&self) -> Result<(), Invalid> {
        let name_ok = (1..=32).contains(&self.name.len())
            && self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        Invalid::unless(name_ok, "services.name", "1 to 32 lower-case letters, digits and hyphens")?;
        let cid_ok =
            (32..=128).contains(&self.image.len()) && self.image.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        Invalid::unless(cid_ok, "services.image", "a CIDv1 in base32")?;
        let digits = self.image_id.strip_prefix("sha256:").unwrap_or_default();
        Invalid::unless(
            digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()),
            "services.image_id",
            "sha256: and 64 hexadecimal digits",
        )?;
        let text_ok = |text: &String| text.len() <= TEXT_BYTES_MAX && !text.contains('\0');
        Invalid::unless(
            self.command.len() <= ITEMS_MAX && self.command.iter().all(text_ok),
            "services.command",
            "too many or too long",
        )?;
        let variables_ok = self.environment.iter().all(|(k, v)| text_ok(k) && text_ok(v) && !k.is_empty() && !k.contains('='));
        Invalid::unless(
            self.environment.len() <= ITEMS_MAX && variables_ok,
            "services.environment",
            "too many, too long or a bad name",
        )?;
        Invalid::unless(self.depends_on.len() <= SERVICES_MAX, "services.depends_on", "too many")?;
        let limits = [self.memory_bytes_max, self.cpu_millis_max, self.pids_max];
        Invalid::unless(
            limits.iter().all(|l| (1..=crate::resources::INTEGER_MAX).contains(l)),
            "services limits",
            "each limit is at least one",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Statement as _;
    use crate::resources::INTEGER_MAX;
    use crate::test_contract::contract;

    #[test]
    fn a_variable_is_there_once() {
        let mut service = contract().blueprint.services.remove(0);
        service.environment.insert("LEVEL".to_owned(), "7".to_owned());
        let json = serde_json::to_string(&service).expect("JSON");
        assert_eq!(serde_json::from_str::<Service>(&json).expect("its own JSON"), service);
        let twice = json.replace(r#""LEVEL":"7""#, r#""LEVEL":"7","LEVEL":"8""#);
        assert_ne!(twice, json);
        let error = serde_json::from_str::<Service>(&twice).expect_err("two values");
        assert!(error.to_string().contains("twice"), "{error}");
        assert!(serde_json::from_str::<Service>(&json.replace(r#"{"LEVEL":"7"}"#, "[]")).is_err());
    }

    #[test]
    fn numbers_that_json_readers_would_bend_are_refused() {
        let mut contract = contract();
        contract.nonce = INTEGER_MAX;
        assert_eq!(contract.validate(), Ok(()));
        contract.nonce += 1;
        assert!(matches!(contract.validate(), Err(Invalid { field: "nonce", .. })));
    }
}
