//! What each gateway was told to send, and when. A gateway has one transmitter: its packet forwarder refuses what overlaps with what waits in
//! its queue (`jitqueue.c`, `COLLISION_PACKET`), and drops what begins while it transmits. One answer in RX2 at SF12 takes a second of it.
//!
//! Times are those of the gateway's own counter, as in the packets: exact, whatever the way to it takes. Other servers of the same gateway are
//! not known here; its `TX_ACK` tells of them.

use std::collections::BTreeMap;

use contracts::time::{BootTime, Millis};

use crate::gwmp::GatewayEui;

/// From the end of one transmission to the start of the next: 1.5 ms in which the concentrator starts, 1 ms of the forwarder's own, and 1 ms by
/// which it rounds times on air up.
const GUARD_MICROS: u32 = 3_500;
/// By then a transmission is over: RX2 is at most 16 s after its uplink, and no frame takes longer than 4 s.
const OVER_AFTER: Millis = Millis::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planned {
    /// Start, on the gateway's counter of microseconds.
    tmst: u32,
    micros: u32,
    forget: BootTime,
}

/// Whether `one` is over, with a guard, when `other` starts. Both are seconds apart, the counter turns after 71 minutes.
const fn is_before(one: (u32, u32), other: (u32, u32)) -> bool {
    let end = one.0.wrapping_add(one.1).wrapping_add(GUARD_MICROS);
    other.0.wrapping_sub(end).cast_signed() > 0
}

/// All gateways'. None has more at a time than fit one after the other.
#[derive(Debug, Default)]
pub(super) struct Schedules(BTreeMap<GatewayEui, Vec<Planned>>);

impl Schedules {
    /// Whether the gateway's transmitter is free from `tmst` on for so long.
    pub(super) fn is_free(&self, gateway: GatewayEui, tmst: u32, micros: u64) -> bool {
        let wanted = (tmst, low(micros));
        self.0.get(&gateway).into_iter().flatten().all(|planned| {
            let known = (planned.tmst, planned.micros);
            is_before(known, wanted) || is_before(wanted, known)
        })
    }

    /// The gateway is told to send then.
    pub(super) fn plan(&mut self, gateway: GatewayEui, tmst: u32, micros: u64, now: BootTime) {
        self.0.retain(|_, planned| {
            planned.retain(|planned| planned.forget > now);
            !planned.is_empty()
        });
        let planned = Planned { tmst, micros: low(micros), forget: now + OVER_AFTER };
        self.0.entry(gateway).or_default().push(planned);
    }

    /// The gateway refused it.
    pub(super) fn give_back(&mut self, gateway: GatewayEui, tmst: u32) {
        if let Some(planned) = self.0.get_mut(&gateway) {
            planned.retain(|planned| planned.tmst != tmst);
        }
    }
}

fn low(micros: u64) -> u32 {
    u32::try_from(micros).unwrap_or(u32::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: GatewayEui = GatewayEui(1);
    const TWO: GatewayEui = GatewayEui(2);

    #[test]
    fn a_transmitter_sends_one_at_a_time() {
        // Where the counter turns, too.
        for start in [5_000_000_u32, u32::MAX - 10_000, u32::MAX - 100_000] {
            let mut schedules = Schedules::default();
            schedules.plan(ONE, start, 41_216, BootTime(0));
            let is_free = |from: i32, micros: u64| schedules.is_free(ONE, start.wrapping_add_signed(from), micros);
            for (from, micros, expected) in [
                (0, 1, false),
                (20_000, 41_216, false),
                (41_216, 41_216, false),
                (41_216 + 3_500, 41_216, false),
                (41_216 + 3_501, 41_216, true),
                (-41_216, 41_216, false),
                (-41_216 - 3_501, 41_216, true),
                (-500_000, 1_200_000, false),
                (-1_300_000, 1_200_000, true),
                (1_000_000, 1_200_000, true),
            ] {
                assert_eq!(is_free(from, micros), expected, "{start}: {micros} us, {from} us after");
            }
            assert!(schedules.is_free(TWO, start, 41_216), "another gateway");
        }
    }

    #[test]
    fn what_was_refused_or_is_long_over_is_forgotten() {
        let mut schedules = Schedules::default();
        schedules.plan(ONE, 1_000_000, 1_200_000, BootTime(0));
        schedules.plan(ONE, 3_000_000, 41_216, BootTime(100));
        schedules.give_back(ONE, 1_000_000);
        schedules.give_back(TWO, 3_000_000);
        assert!(schedules.is_free(ONE, 1_000_000, 41_216) && !schedules.is_free(ONE, 3_000_000, 41_216));
        schedules.plan(TWO, 0, 1, BootTime(20_100));
        assert_eq!(schedules.0.keys().copied().collect::<Vec<_>>(), [TWO], "nothing is kept of who sends nothing");
    }
}
