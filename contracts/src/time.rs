//! Time as the rules see it: integers in newtypes, always handed in from outside.

use std::fmt;
use std::ops::{Add, AddAssign, Mul, Sub};

use serde::{Deserialize, Serialize};

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

/// Wall-clock time: milliseconds since the Unix epoch, UTC. For records and validity; never for leases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub u64);

/// Time since this machine booted, suspended time included (`CLOCK_BOOTTIME`), in milliseconds. For leases; never leaves the machine as a fact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl Millis {
    pub const ZERO: Self = Self(0);

    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds * 1_000)
    }

    #[must_use]
    pub const fn to_duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }

    /// `self * numerator / denominator`, rounded down.
    #[must_use]
    pub const fn scaled(self, numerator: u64, denominator: u64) -> Self {
        Self(self.0 * numerator / denominator)
    }
}

impl Add for Millis {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Mul<u64> for Millis {
    type Output = Self;

    fn mul(self, factor: u64) -> Self {
        Self(self.0 * factor)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

macro_rules! instant {
    ($name:ident) => {
        impl Add<Millis> for $name {
            type Output = Self;

            fn add(self, length: Millis) -> Self {
                Self(self.0.saturating_add(length.0))
            }
        }

        impl AddAssign<Millis> for $name {
            fn add_assign(&mut self, length: Millis) {
                *self = *self + length;
            }
        }

        impl Sub<Millis> for $name {
            type Output = Self;

            fn sub(self, length: Millis) -> Self {
                Self(self.0.saturating_sub(length.0))
            }
        }

        impl $name {
            /// How long ago `earlier` was; zero if it is still to come.
            #[must_use]
            pub const fn since(self, earlier: Self) -> Millis {
                Millis(self.0.saturating_sub(earlier.0))
            }
        }
    };
}

instant!(WallTime);
instant!(BootTime);
