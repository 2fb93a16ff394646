//! Which session a frame belongs to: devices may share an address, and only the integrity code tells them apart.
//!
//! The cost is bounded: the copies of a frame find its session at once, sessions that expect about this counter are tried first,
//! [`FREE_TRIALS`] per frame are free, and more than that are paid from an allowance that all crowded addresses share.

use contracts::ids::DevAddr;
use contracts::time::BootTime;

use super::integrity::{MIC_BYTES, is_authentic};
use super::registry::{Registry, SlotIndex};
use super::session::Entry;
use super::uplink::{Error, Header, Misfit, Verified, infer};

/// Trials per frame that cost no allowance, about 10 us.
pub const FREE_TRIALS: u64 = 64;

/// Trials of the allowance per millisecond: about a fiftieth of a core.
const TRIALS_PER_MILLI: u64 = 100;

/// The most that the allowance grows to.
const ALLOWANCE_MAX: u64 = 20_000;

/// A session that expects a counter at most so far below is tried first.
const NEAR: u32 = 16;

/// Frames whose sessions are remembered, for their copies.
const MEMO_PLACES: usize = 1_024;

/// Below so many sessions of an address nothing is remembered.
const CROWD: usize = 4;

/// A device that began anew was heard first with a counter at most this, unless the counter lies outside of what its session takes.
const RESET_START_MAX: u32 = 32;

/// A lower counter so long after the newest one is no frame that was delayed on its way.
const RESET_SILENCE_MILLIS: u64 = 10_000;

/// The allowance, and what was found lately.
#[derive(Debug)]
pub(crate) struct Trials {
    memo: Vec<(DevAddr, [u8; MIC_BYTES], SlotIndex)>,
    allowance: u64,
    filled: BootTime,
    /// Integrity codes computed.
    pub made: u64,
}

/// One frame while it is tried.
struct Frame<'a> {
    header: &'a Header,
    phy: &'a [u8],
    /// Heard just now by this node's own gateway.
    is_live: bool,
    now: BootTime,
}

/// What one session says to a frame.
enum Trial {
    Fits(Verified),
    Wrong,
    Misfit(Misfit),
}

impl Trials {
    pub(crate) fn new() -> Self {
        let nobody = (DevAddr::from_u32(0), [0; MIC_BYTES], SlotIndex::MAX);
        Self { memo: vec![nobody; MEMO_PLACES], allowance: ALLOWANCE_MAX, filled: BootTime(0), made: 0 }
    }

    /// Finds the session of a frame. `is_live` says that this node's own gateway heard it just now.
    pub(crate) fn verify(
        &mut self,
        registry: &Registry,
        header: &Header,
        phy: &[u8],
        is_live: bool,
        now: BootTime,
    ) -> Result<Verified, Error> {
        let candidates = registry.with_address(header.dev_addr);
        let frame = Frame { header, phy, is_live, now };
        match candidates {
            [] => Err(Error::UnknownAddress),
            [only] => self.find(registry, &frame, std::iter::once(*only), None).map_err(|failed| failed.error()),
            many if many.len() < CROWD => {
                self.find(registry, &frame, many.iter().copied(), None).map_err(|failed| failed.error())
            }
            many => self.verify_crowded(registry, &frame, many),
        }
    }

    fn verify_crowded(&mut self, registry: &Registry, frame: &Frame<'_>, candidates: &[SlotIndex]) -> Result<Verified, Error> {
        let mic = frame.phy.last_chunk().copied().unwrap_or_default();
        let place = u32::from_le_bytes(mic) as usize % MEMO_PLACES;
        let (address, known_mic, slot) = self.memo[place];
        if (address, known_mic) == (frame.header.dev_addr, mic)
            && registry.get(slot).is_some_and(|entry| entry.dev_addr == address)
            && let Ok(found) = self.find(registry, frame, std::iter::once(slot), None)
        {
            return Ok(found);
        }
        let grown = frame.now.since(self.filled).0.saturating_mul(TRIALS_PER_MILLI);
        self.allowance = self.allowance.saturating_add(grown).min(ALLOWANCE_MAX);
        self.filled = frame.now;
        let budget = FREE_TRIALS + self.allowance;
        let before = self.made;
        let is_near = |slot: &SlotIndex| registry.get(*slot).is_some_and(|entry| frame.is_near(entry));
        let near = candidates.iter().copied().filter(is_near);
        let far = candidates.iter().copied().filter(|slot| !is_near(slot));
        let found = self.find(registry, frame, near.chain(far), Some(before + budget));
        self.allowance -= (self.made - before).saturating_sub(FREE_TRIALS).min(self.allowance);
        match found {
            Ok(verified) => {
                self.memo[place] = (frame.header.dev_addr, mic, verified.slot);
                Ok(verified)
            }
            Err(failed) => Err(failed.error()),
        }
    }

    /// Tries one session after the other until `until` codes have been computed in all.
    fn find(
        &mut self,
        registry: &Registry,
        frame: &Frame<'_>,
        candidates: impl Iterator<Item = SlotIndex>,
        until: Option<u64>,
    ) -> Result<Verified, Failed> {
        let mut failed = Failed::default();
        for slot in candidates {
            let Some(entry) = registry.get(slot) else { continue };
            if until.is_some_and(|until| self.made >= until) {
                failed.is_exhausted = true;
                break;
            }
            match self.trial(slot, entry, frame) {
                Trial::Fits(verified) => return Ok(verified),
                Trial::Wrong => failed.is_tried = true,
                Trial::Misfit(why) => failed.misfit = Some(why),
            }
        }
        Err(failed)
    }

    fn is_authentic(&mut self, entry: &Entry, frame: &Frame<'_>, f_cnt: u32) -> bool {
        self.made += 1;
        is_authentic(frame.phy, entry.dev_addr, f_cnt, &entry.nwk_s_key)
    }

    fn trial(&mut self, slot: SlotIndex, entry: &Entry, frame: &Frame<'_>) -> Trial {
        let low = frame.header.f_cnt_low;
        let inferred = infer(entry.f_cnt_up_next, low, entry.uplink_rules.f_cnt_gap_max);
        let restarted = u32::from(low);
        let may_reset = frame.is_live && entry.uplink_rules.may_reset && frame.is_long_after_newest(entry);
        if let Ok(f_cnt) = inferred
            && self.is_authentic(entry, frame, f_cnt)
        {
            let is_reset = may_reset && f_cnt == restarted && frame.is_new_start(entry, f_cnt);
            return Trial::Fits(Verified { slot, f_cnt, is_reset });
        }
        let may_be_lower = may_reset && restarted < entry.f_cnt_up_next && inferred != Ok(restarted);
        if may_be_lower && self.is_authentic(entry, frame, restarted) {
            return Trial::Fits(Verified { slot, f_cnt: restarted, is_reset: true });
        }
        inferred.map_or_else(Trial::Misfit, |_| Trial::Wrong)
    }
}

impl Frame<'_> {
    fn is_near(&self, entry: &Entry) -> bool {
        let inferred = infer(entry.f_cnt_up_next, self.header.f_cnt_low, entry.uplink_rules.f_cnt_gap_max);
        inferred.is_ok_and(|f_cnt| f_cnt + 1 >= entry.f_cnt_up_next && f_cnt - entry.f_cnt_up_next.min(f_cnt) <= NEAR)
    }

    fn is_long_after_newest(&self, entry: &Entry) -> bool {
        entry.newest.is_none_or(|(heard, _)| self.now.since(heard).0 >= RESET_SILENCE_MILLIS)
    }

    /// A low counter that the session had already, with other contents if it is the newest: the device repeats the newest only.
    fn is_new_start(&self, entry: &Entry, f_cnt: u32) -> bool {
        let is_repetition =
            f_cnt + 1 == entry.f_cnt_up_next && entry.newest.is_none_or(|(_, mic)| self.phy.last_chunk() == Some(&mic));
        f_cnt < entry.f_cnt_up_next && f_cnt <= RESET_START_MAX && !is_repetition
    }
}

/// Why no session took a frame.
#[derive(Debug, Default)]
struct Failed {
    misfit: Option<Misfit>,
    is_tried: bool,
    is_exhausted: bool,
}

impl Failed {
    const fn error(&self) -> Error {
        match self.misfit {
            _ if self.is_exhausted => Error::TrialsExhausted,
            Some(Misfit::Old) if !self.is_tried => Error::OldCounter,
            Some(Misfit::Gap) if !self.is_tried => Error::CounterGap,
            Some(Misfit::Old | Misfit::Gap) | None => Error::IntegrityCode,
        }
    }
}
