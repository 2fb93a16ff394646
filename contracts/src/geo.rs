//! Positions on the earth and the distance between them. Floats stay inside: what is signed is an integer.

use serde::{Deserialize, Serialize};

/// WGS 84, in 10^-7 degrees (about 1 cm).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// -90 to 90 degrees, north positive.
    pub latitude_e7: i32,
    /// -180 to 180 degrees, east positive.
    pub longitude_e7: i32,
}

/// Mean radius of the earth (IUGG), in metres.
const EARTH_RADIUS_M: f64 = 6_371_008.8;

impl Position {
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.latitude_e7.unsigned_abs() <= 900_000_000 && self.longitude_e7.unsigned_abs() <= 1_800_000_000
    }

    /// Great-circle distance in whole metres, rounded up (haversine; a range check never says "in range" too early).
    #[must_use]
    pub fn distance_m(self, other: Self) -> u32 {
        let radians = |e7: i32| f64::from(e7) * 1e-7_f64.to_radians();
        let (lat_a, lat_b) = (radians(self.latitude_e7), radians(other.latitude_e7));
        let half_lat = ((lat_b - lat_a) / 2.0).sin();
        let half_lon = ((radians(other.longitude_e7) - radians(self.longitude_e7)) / 2.0).sin();
        let h = half_lat * half_lat + lat_a.cos() * lat_b.cos() * half_lon * half_lon;
        let metres = 2.0 * EARTH_RADIUS_M * h.sqrt().min(1.0).asin();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most half the circumference: 20,015,115 m"
        )]
        let whole = metres.ceil() as u32;
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rio_to_antirio_is_about_two_kilometres() {
        let rio = Position { latitude_e7: 383_100_000, longitude_e7: 217_800_000 };
        let antirio = Position { latitude_e7: 383_300_000, longitude_e7: 217_670_000 };
        assert!((2_450..2_550).contains(&rio.distance_m(antirio)), "{}", rio.distance_m(antirio));
        assert_eq!(rio.distance_m(rio), 0);
        let antipode = Position { latitude_e7: -383_100_000, longitude_e7: 217_800_000 - 1_800_000_000 };
        assert!((20_015_000..20_015_200).contains(&rio.distance_m(antipode)));
    }
}
