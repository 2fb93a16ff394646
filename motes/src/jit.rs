//! The transmit queue of a packet forwarder (pure), after Semtech's `jitqueue.c`.

use crate::airtime::SpreadingFactor;

/// Packets that fit into the queue (`JIT_QUEUE_MAX`).
pub const QUEUE_MAX: usize = 32;
/// Time that the concentrator needs to start a transmission (`TX_START_DELAY`).
const START_DELAY_US: u32 = 1_500;
/// Margin between packets and before a start (`TX_MARGIN_DELAY`).
const MARGIN_US: u32 = 1_000;
/// A packet is handed to the concentrator this long before its start (`TX_JIT_DELAY`).
pub const HANDOVER_US: u64 = 30_000;
/// Further ahead than this a time is not believed (`TX_MAX_ADVANCE_DELAY`): 4 beacon periods of 128 s.
const ADVANCE_US_MAX: u32 = 512_000_000;

/// Why a packet is refused; the texts are those of `TX_ACK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Rejected {
    /// 2.5 ms or less before its start.
    #[error("TOO_LATE")]
    TooLate,
    /// More than 512 s ahead. The forwarder computes with unsigned numbers, so a start that has passed already looks like
    /// 71 minutes ahead and is refused with this text as well.
    #[error("TOO_EARLY")]
    TooEarly,
    /// Overlaps with a packet in the queue, or the queue is full.
    #[error("COLLISION_PACKET")]
    Collision,
    /// A frequency that the gateway cannot send on.
    #[error("TX_FREQ")]
    Frequency,
}

/// A packet that waits for its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Physical payload.
    pub bytes: Vec<u8>,
    /// Data rate.
    pub data_rate: SpreadingFactor,
    /// Frequency.
    pub frequency_hz: u32,
    /// Inverted polarisation.
    pub inverted: bool,
}

#[derive(Clone, Debug)]
struct Queued {
    start_us: u64,
    end_us: u64,
    /// Taken out when it is handed over; the slot stays occupied until the end of the transmission.
    packet: Option<Packet>,
}

/// The queue.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    queued: Vec<Queued>,
}

impl Queue {
    /// Queues `packet` for the counter value `tmst`, seen at `now_us` when the counter shows `counter`. Answers with the time of the
    /// start.
    ///
    /// # Errors
    /// [`Rejected`], and nothing is queued.
    pub fn enqueue(&mut self, packet: Packet, tmst: u32, counter: u32, now_us: u64) -> Result<u64, Rejected> {
        self.queued.retain(|queued| queued.end_us > now_us);
        let ahead_us = tmst.wrapping_sub(counter);
        if ahead_us <= START_DELAY_US + MARGIN_US {
            return Err(Rejected::TooLate);
        }
        if ahead_us > ADVANCE_US_MAX {
            return Err(Rejected::TooEarly);
        }
        if !(863_000_000..=870_000_000).contains(&packet.frequency_hz) {
            return Err(Rejected::Frequency);
        }
        if self.queued.len() >= QUEUE_MAX {
            return Err(Rejected::Collision);
        }
        let start_us = now_us + u64::from(ahead_us);
        let end_us = start_us + packet.data_rate.airtime_us(packet.bytes.len(), false);
        let guard_us = u64::from(START_DELAY_US + MARGIN_US);
        let overlaps = |other: &Queued| start_us <= other.end_us + guard_us && other.start_us <= end_us + guard_us;
        if self.queued.iter().any(overlaps) {
            return Err(Rejected::Collision);
        }
        self.queued.push(Queued { start_us, end_us, packet: Some(packet) });
        Ok(start_us)
    }

    /// When the next packet must be handed over.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        self.queued
            .iter()
            .filter(|queued| queued.packet.is_some())
            .map(|queued| queued.start_us.saturating_sub(HANDOVER_US))
            .min()
    }

    /// A packet whose hand-over is due, with its start.
    pub fn pop_due(&mut self, now_us: u64) -> Option<(u64, Packet)> {
        self.queued
            .iter_mut()
            .filter(|queued| queued.packet.is_some() && queued.start_us <= now_us + HANDOVER_US)
            .min_by_key(|queued| queued.start_us)
            .and_then(|queued| queued.packet.take().map(|packet| (queued.start_us, packet)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_700_000_000_000_000;

    fn packet() -> Packet {
        // 12 bytes at SF7 without CRC: 41.2 ms.
        Packet { bytes: vec![0; 12], data_rate: SpreadingFactor::SF7, frequency_hz: 868_100_000, inverted: true }
    }

    #[test]
    fn time_limits_are_those_of_the_forwarder() {
        let counter = u32::MAX - 1_000; // wraps within the next millisecond
        for (ahead_us, expected) in [
            (0, Err(Rejected::TooLate)),
            (2_500, Err(Rejected::TooLate)),
            (2_501, Ok(NOW_US + 2_501)),
            (1_000_000, Ok(NOW_US + 1_000_000)),
            (512_000_000, Ok(NOW_US + 512_000_000)),
            (512_000_001, Err(Rejected::TooEarly)),
            (u32::MAX, Err(Rejected::TooEarly)), // one microsecond ago
        ] {
            assert_eq!(
                Queue::default().enqueue(packet(), counter.wrapping_add(ahead_us), counter, NOW_US),
                expected,
                "{ahead_us}"
            );
        }
        let far = Packet { frequency_hz: 915_000_000, ..packet() };
        assert_eq!(Queue::default().enqueue(far, 1_000_000, 0, NOW_US), Err(Rejected::Frequency));
    }

    #[test]
    fn overlapping_packets_collide() {
        let airtime_us = u32::try_from(SpreadingFactor::SF7.airtime_us(12, false)).expect("small");
        for (second, expected) in [
            (1_000_000, false),
            (1_000_000 + airtime_us + 2_500, false),
            (1_000_000 + airtime_us + 2_501, true),
            (1_000_000 - airtime_us - 2_500, false),
            (1_000_000 - airtime_us - 2_501, true),
        ] {
            let mut queue = Queue::default();
            queue.enqueue(packet(), 1_000_000, 0, NOW_US).expect("the first fits");
            assert_eq!(queue.enqueue(packet(), second, 0, NOW_US).is_ok(), expected, "{second}");
        }
        let mut queue = Queue::default();
        for slot in 0..32 {
            queue.enqueue(packet(), 1_000_000 + slot * 100_000, 0, NOW_US).expect("it fits");
        }
        assert_eq!(queue.enqueue(packet(), 9_000_000, 0, NOW_US), Err(Rejected::Collision));
    }

    #[test]
    fn packets_are_handed_over_once_and_occupy_the_air_until_their_end() {
        let mut queue = Queue::default();
        let start_us = queue.enqueue(packet(), 1_000_000, 0, NOW_US).expect("it fits");
        assert_eq!(queue.next_us(), Some(start_us - HANDOVER_US));
        assert_eq!(queue.pop_due(start_us - HANDOVER_US - 1), None);
        assert_eq!(queue.pop_due(start_us - HANDOVER_US), Some((start_us, packet())));
        assert_eq!((queue.pop_due(start_us), queue.next_us()), (None, None));
        assert_eq!(queue.enqueue(packet(), 30_000, 0, start_us - HANDOVER_US), Err(Rejected::Collision));
        assert!(queue.enqueue(packet(), 30_000, 0, start_us + 100_000).is_ok());
    }
}
