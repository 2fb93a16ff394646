//! How long a customer waits after contracts that went wrong, and after refusals, so that a fault that stays does not cost one contract after
//! the other. Pure.

use contracts::time::{Millis, WallTime};

/// Pause after the first contract that went wrong; doubled for each that follows it soon.
const PAUSE_MIN: Millis = Millis::from_secs(1);
/// Longest pause.
pub const PAUSE_MAX: Millis = Millis::from_secs(3_600);
/// A contract that was in force for so long, and for so many times the pause before it, follows no other: what was wrong had passed.
const LASTING: Millis = Millis::from_secs(60);
const LASTING_PAUSES: u64 = 10;

/// When insurance may be looked for again after contracts for one group that ended as a breach or were taken back, without a good one since.
/// `starts`: when they came into force, oldest first; `ended_at`: when the last of them ended. None without any.
///
/// Only starts are used of the earlier ones: they are in the signed texts, and so a restart changes nothing.
#[must_use]
pub fn resume_at(starts: &[WallTime], ended_at: WallTime) -> Option<WallTime> {
    starts.first()?;
    let doubled = starts.windows(2).fold(PAUSE_MIN, |pause, pair| {
        let follows_soon = pair[1].since(pair[0]).0 < LASTING.0 + (LASTING_PAUSES + 1) * pause.0;
        if follows_soon { Millis((pause.0 * 2).min(PAUSE_MAX.0)) } else { PAUSE_MIN }
    });
    Some(ended_at + doubled)
}

/// Longest pause after a refusal: nothing was lost but the work.
pub const REFUSED_PAUSE_MAX: Millis = Millis::from_secs(600);

/// Contracts that were refused before they came into force. In memory: after a restart the row begins anew, with its first pause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// The last one's pause before jitter, and when it is over.
    last: Option<(Millis, WallTime)>,
}

impl Refusals {
    /// One more; gives the pause that follows: doubled while they follow each other soon, and between half of that and all of it by `random`,
    /// so that customers whom one provider refuses at one moment do not come back at one moment.
    pub fn note(&mut self, now: WallTime, random: u64) -> Millis {
        let full = match self.last {
            Some((pause, over)) if now.since(over).0 < LASTING.0 + LASTING_PAUSES * pause.0 => {
                Millis((pause.0 * 2).min(REFUSED_PAUSE_MAX.0))
            }
            Some(_) | None => PAUSE_MIN,
        };
        let pause = Millis(full.0 - random % (full.0 / 2 + 1));
        self.last = Some((full, now + pause));
        pause
    }

    /// A contract came into force.
    pub const fn end(&mut self) {
        self.last = None;
    }

    /// When the pause is over. None without a refusal; a clock that was set back does not make it longer.
    #[must_use]
    pub fn resume_at(&self, now: WallTime) -> Option<WallTime> {
        self.last.map(|(full, over)| if over.since(now) > full { now } else { over })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: WallTime = WallTime(1_000_000_000);

    /// Starts of `count` contracts, each in force for `life` and followed by the pause that is due.
    fn row(count: usize, life: Millis) -> (Vec<WallTime>, Vec<u64>) {
        let (mut starts, mut pauses) = (vec![START], Vec::new());
        for _ in 0..count {
            let ended_at = *starts.last().expect("one") + life;
            let resume = resume_at(&starts, ended_at).expect("a pause");
            pauses.push(resume.since(ended_at).0 / 1_000);
            starts.push(resume);
        }
        (starts, pauses)
    }

    #[test]
    fn pauses_double_up_to_an_hour_while_contracts_fail_at_once() {
        assert_eq!(resume_at(&[], START), None);
        let (_, pauses) = row(15, Millis(500));
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 3_600, 3_600, 3_600]);
    }

    #[test]
    fn a_day_of_failing_contracts_is_a_few_dozen() {
        let day = 86_400_000;
        let (starts, _) = row(60, Millis(2_000));
        let within = starts.iter().filter(|start| start.since(START).0 < day).count();
        assert!((30..=40).contains(&within), "{within}");
    }

    #[test]
    fn contracts_that_lasted_are_no_row() {
        let (_, pauses) = row(5, Millis::from_secs(3_600));
        assert_eq!(pauses, [1; 5]);
        let (mut starts, _) = row(6, Millis(500));
        let last = *starts.last().expect("some");
        assert_eq!(resume_at(&starts, last).expect("a pause").since(last), Millis::from_secs(64));
        starts.push(last + Millis::from_secs(86_400));
        let last = *starts.last().expect("some");
        assert_eq!(resume_at(&starts, last).expect("a pause").since(last), PAUSE_MIN);
    }

    #[test]
    fn the_first_refusal_is_followed_by_a_pause_and_each_that_follows_soon_by_a_longer_one() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.resume_at(START), None);
        let (mut now, mut pauses) = (START, Vec::new());
        for _ in 0..13 {
            let pause = refusals.note(now, 0);
            assert_eq!(refusals.resume_at(now), Some(now + pause));
            pauses.push(pause.0 / 1_000);
            now = now + pause + Millis(20);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]);
        assert_eq!(refusals.resume_at(WallTime(START.0 - 10_000_000)), Some(WallTime(START.0 - 10_000_000)), "a clock set back");
        refusals.end();
        assert_eq!((refusals.resume_at(now), refusals.note(now, 0)), (None, PAUSE_MIN));
        assert_eq!(refusals.note(now + Millis::from_secs(120), 0), PAUSE_MIN, "long ago");
    }

    #[test]
    fn a_provider_that_always_refuses_costs_a_day_a_bounded_number_of_contracts_whatever_the_randomness() {
        for random in [0, 1, 499, 500, 501, 123_456_789, u64::MAX] {
            let (mut refusals, mut now, mut count) = (Refusals::default(), START, 0);
            while now.since(START).0 < 86_400_000 {
                let pause = refusals.note(now, random);
                assert!((500..=REFUSED_PAUSE_MAX.0).contains(&pause.0), "{random}: {pause:?}");
                now = refusals.resume_at(now).expect("a pause") + Millis(50);
                count += 1;
            }
            assert!((150..=310).contains(&count), "{random}: {count}");
        }
    }
}
