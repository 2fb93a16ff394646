//! Identities and keys of a fleet of motes, activated by personalisation or over the air, all derived from one seed.

use std::fmt;
use std::str::FromStr;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

use crate::airtime::SpreadingFactor;
use crate::seed::{Seed, Topic};

/// Largest fleet: one block of 16 bits of device addresses.
pub const MOTES_MAX: u32 = 65_536;

/// `JoinEUI` of all motes that join.
pub const JOIN_EUI: Eui64 = Eui64(0x0200_0000_0000_00aa);

/// Why an identifier or a key could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {1} hexadecimal digits")]
pub struct NotHex(pub String, pub usize);

/// Why a fleet could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fleet has 1 to {MOTES_MAX} motes, not {0}")]
pub struct FleetSize(pub u32);

macro_rules! hex_number {
    ($(#[$doc:meta])* $name:ident, $number:ty, $digits:literal, $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl FromStr for $name {
            type Err = NotHex;

            fn from_str(text: &str) -> Result<Self, NotHex> {
                let refused = || NotHex(text.chars().take(40).collect(), $digits);
                if text.len() != $digits || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(refused());
                }
                <$number>::from_str_radix(text, 16).map(Self).map_err(|_| refused())
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotHex;

            fn try_from(text: String) -> Result<Self, NotHex> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

hex_number!(
    /// A device or gateway EUI; 16 lower-case hexadecimal digits, most significant first.
    Eui64, u64, 16, "{:016x}"
);
hex_number!(
    /// A LoRaWAN device address; 8 hexadecimal digits, most significant first (on air it is least significant first).
    DevAddr, u32, 8, "{:08x}"
);

/// A 128-bit session key; 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(pub [u8; 16]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl TryFrom<String> for Key {
    type Error = NotHex;

    fn try_from(text: String) -> Result<Self, NotHex> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| NotHex("a key".to_owned(), 32))?;
        Ok(Self(bytes))
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        hex::encode(key.0)
    }
}

/// Which rules a mote follows that joins over the air.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRules {
    /// LoRaWAN 1.0.3 and before: a random `DevNonce`, any `AppNonce`.
    #[serde(rename = "1.0.3")]
    V1_0_3,
    /// LoRaWAN 1.0.4: `DevNonce` counts up over the mote's life, `JoinNonce` must be above the last one.
    #[serde(rename = "1.0.4")]
    V1_0_4,
}

/// What a mote that joins over the air is born with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Otaa {
    /// `JoinEUI`, before called `AppEUI`.
    pub join_eui: Eui64,
    /// Root key.
    pub app_key: Key,
    /// Its rules.
    pub rules: JoinRules,
}

/// One mote as its owner writes it down: LoRaWAN 1.0.x, class A, EU868, counters from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Globally unique identifier of the mote.
    pub dev_eui: Eui64,
    /// Address in its session.
    pub dev_addr: DevAddr,
    /// Network session key.
    pub nwk_s_key: Key,
    /// Application session key.
    pub app_s_key: Key,
    /// Set for a mote that joins over the air: it uses neither the address nor the session keys above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otaa: Option<Otaa>,
}

/// What a server must know to serve the fleet; written as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioning {
    /// Seed that made the fleet.
    pub seed: u64,
    /// Always "1.0.3".
    pub lorawan_version: String,
    /// Always "EU868".
    pub region: String,
    /// First address of the fleet's block.
    pub dev_addr_first: DevAddr,
    /// Last address that the fleet uses (inclusive).
    pub dev_addr_last: DevAddr,
    /// Seconds from the end of an uplink to the first window.
    pub rx1_delay_s: u8,
    /// Frequency of the second window.
    pub rx2_frequency_hz: u32,
    /// Data rate of the second window.
    pub rx2_data_rate: SpreadingFactor,
    /// FPort of all uplinks.
    pub f_port: u8,
    /// All motes, by index.
    pub devices: Vec<Device>,
}

/// All motes of a run.
#[derive(Clone, Debug)]
pub struct Fleet {
    seed: Seed,
    devices: Vec<Device>,
}

impl Fleet {
    /// Derives `count` motes; the same seed gives the same motes, and a larger fleet begins with the smaller one.
    ///
    /// # Errors
    /// [`FleetSize`] for none or more than [`MOTES_MAX`].
    pub fn new(seed: u64, count: u32) -> Result<Self, FleetSize> {
        if count == 0 || count > MOTES_MAX {
            return Err(FleetSize(count));
        }
        let seed = Seed(seed);
        Ok(Self { seed, devices: (0..count).map(|index| derive_device(seed, index)).collect() })
    }

    /// The same fleet, of which this share (parts per million) joins over the air, every other one by the rules of 1.0.4.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_otaa(seed: u64, count: u32, otaa_ppm: u32) -> Result<Self, FleetSize> {
        let mut fleet = Self::new(seed, count)?;
        let mut chosen = 0_u32;
        for (index, device) in (0..count).zip(&mut fleet.devices) {
            if fleet.seed.happens(Topic::Otaa, &[u64::from(index)], otaa_ppm) {
                device.otaa = Some(derive_otaa(fleet.seed, index, chosen.is_multiple_of(2)));
                chosen += 1;
            }
        }
        Ok(fleet)
    }

    /// The motes by index.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The seed of the fleet.
    #[must_use]
    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// The list that the fleet's owner gives to a server; `rx2_data_rate` must be the one the motes run with.
    #[must_use]
    pub fn provisioning(&self, rx2_data_rate: SpreadingFactor) -> Provisioning {
        let first = self.devices.first().map_or(DevAddr(0), |device| device.dev_addr);
        let last = self.devices.last().map_or(DevAddr(0), |device| device.dev_addr);
        Provisioning {
            seed: self.seed.0,
            lorawan_version: "1.0.3".to_owned(),
            region: "EU868".to_owned(),
            dev_addr_first: first,
            dev_addr_last: last,
            rx1_delay_s: 1,
            rx2_frequency_hz: crate::mote::RX2_FREQUENCY_HZ,
            rx2_data_rate,
            f_port: crate::frame::F_PORT,
            devices: self.devices.clone(),
        }
    }
}

/// Addresses begin with seven zero bits (NetID 000000, for experiments); the seed picks the block of 65,536.
fn derive_device(seed: Seed, index: u32) -> Device {
    let mut rng = ChaCha20Rng::seed_from_u64(seed.draw(Topic::Keys, &[u64::from(index)]));
    let mut nwk_s_key = [0; 16];
    let mut app_s_key = [0; 16];
    rng.fill_bytes(&mut nwk_s_key);
    rng.fill_bytes(&mut app_s_key);
    let block = crate::seed::low_u32(seed.draw(Topic::Keys, &[u64::MAX])) & 0xff;
    // 02-.. marks a locally administered identifier.
    let dev_eui = 0x0200_0000_0000_0000 | (u64::from(block) << 32) | u64::from(index);
    Device {
        dev_eui: Eui64(dev_eui),
        dev_addr: DevAddr(0x0100_0000 | (block << 16) | index),
        nwk_s_key: Key(nwk_s_key),
        app_s_key: Key(app_s_key),
        otaa: None,
    }
}

fn derive_otaa(seed: Seed, index: u32, is_1_0_4: bool) -> Otaa {
    let mut rng = ChaCha20Rng::seed_from_u64(seed.draw(Topic::Otaa, &[u64::from(index), 1]));
    let mut app_key = [0; 16];
    rng.fill_bytes(&mut app_key);
    let rules = if is_1_0_4 { JoinRules::V1_0_4 } else { JoinRules::V1_0_3 };
    Otaa { join_eui: JOIN_EUI, app_key: Key(app_key), rules }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn fleets_are_reproducible_and_prefixes_of_larger_ones() {
        let small = Fleet::new(3, 10).expect("ten motes");
        let large = Fleet::new(3, 1_000).expect("a thousand motes");
        assert_eq!(small.devices(), &large.devices()[..10]);
        assert_ne!(small.devices(), Fleet::new(4, 10).expect("ten motes").devices());
        let addresses: BTreeSet<_> = large.devices().iter().map(|device| device.dev_addr).collect();
        let keys: BTreeSet<_> = large.devices().iter().map(|device| device.nwk_s_key.0).collect();
        assert_eq!((addresses.len(), keys.len()), (1_000, 1_000));
        assert!(Fleet::new(3, 0).is_err() && Fleet::new(3, MOTES_MAX + 1).is_err());
    }

    #[test]
    fn a_share_joins_and_the_rest_stays_as_it_was() {
        let plain = Fleet::new(3, 1_000).expect("a thousand motes");
        let mixed = Fleet::with_otaa(3, 1_000, 100_000).expect("a thousand motes");
        let joining: Vec<&Otaa> = mixed.devices().iter().filter_map(|device| device.otaa.as_ref()).collect();
        assert!((60..140).contains(&joining.len()), "{}", joining.len());
        let newer = joining.iter().filter(|otaa| otaa.rules == JoinRules::V1_0_4).count();
        assert!(newer.abs_diff(joining.len() - newer) <= 1);
        let without =
            |fleet: &Fleet| fleet.devices().iter().map(|device| Device { otaa: None, ..device.clone() }).collect::<Vec<_>>();
        assert_eq!(without(&mixed), plain.devices());
        assert_eq!(Fleet::with_otaa(3, 1_000, 0).expect("a thousand motes").devices(), plain.devices());
    }

    #[test]
    fn provisioning_survives_json() {
        let list = Fleet::new(3, 5).expect("five motes").provisioning(SpreadingFactor::SF12);
        let text = serde_json::to_string(&list).expect("provisioning is serialisable");
        assert_eq!(serde_json::from_str::<Provisioning>(&text).expect("and readable"), list);
        assert!(text.contains("\"nwk_s_key\":\""));
        assert_eq!(list.dev_addr_last.0 - list.dev_addr_first.0, 4);
    }

    #[test]
    fn identifiers_refuse_what_is_not_hexadecimal() {
        assert_eq!("00000000000000ff".parse(), Ok(Eui64(255)));
        for bad in ["", "ff", "+0000000000000ff", "00000000000000fg", "000000000000000ff"] {
            assert!(bad.parse::<Eui64>().is_err(), "{bad}");
        }
        assert!(Key::try_from("00".to_owned()).is_err());
        assert_eq!(format!("{:?}", Key([1; 16])), "Key(..)");
    }
}
