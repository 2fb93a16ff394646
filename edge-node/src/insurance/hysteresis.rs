//! How long a customer must be back before custody is given back: longer, the more often it went of late. What is remembered survives this
//! process; everything but [`keep`] and [`restore`] is pure.

use contracts::ids::GroupId;
use contracts::time::{BootTime, Millis, WallTime};

use super::Error;
use crate::store::Store;

/// Takeovers of so long count.
const MEMORY: Millis = Millis::from_secs(24 * 3_600);
/// Longest quiet time that doubling comes to.
const QUIET_MAX: Millis = Millis::from_secs(3_600);
/// A contract with a shorter quiet time is one for a demonstration or a test, in which takeovers follow one another on purpose.
const DOUBLED_FROM: Millis = Millis::from_secs(60);
/// More takeovers than these change nothing any more.
const TAKEOVERS_MAX: usize = 32;

/// Where it is kept; tenants' own keys cannot begin with a dot.
const KEY: &str = ".takeovers";

/// When this node took a group over, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takeovers(Vec<BootTime>);

impl Takeovers {
    /// One more.
    pub fn note(&mut self, now: BootTime) {
        self.0.retain(|at| now.since(*at) < MEMORY);
        if self.0.len() == TAKEOVERS_MAX {
            self.0.remove(0);
        }
        self.0.push(now);
    }

    /// The quiet time that is due: `agreed`, doubled for each takeover within a day before the present one, up to an hour.
    #[must_use]
    pub fn quiet(&self, agreed: Millis, now: BootTime) -> Millis {
        if agreed < DOUBLED_FROM {
            return agreed;
        }
        let recent = self.0.iter().filter(|at| now.since(**at) < MEMORY).count();
        (1..recent).fold(agreed, |quiet, _| Millis(quiet.0.saturating_mul(2).min(QUIET_MAX.0.max(agreed.0))))
    }

    /// As it is kept: boot time means nothing after the machine's next start.
    fn to_wall(&self, boot: BootTime, wall: WallTime) -> Vec<WallTime> {
        self.0.iter().map(|at| wall - boot.since(*at)).collect()
    }

    /// The newest of what was kept. What happened before the machine's start counts as if it had happened then, and what a clock that was set
    /// back makes to come, as if it were now: a customer waits longer rather than not long enough.
    fn from_wall(kept: &[WallTime], boot: BootTime, wall: WallTime) -> Self {
        let newest = &kept[kept.len().saturating_sub(TAKEOVERS_MAX)..];
        let recent = newest.iter().map(|at| wall.since(*at)).filter(|age| *age < MEMORY);
        let mut takeovers: Vec<_> = recent.map(|age| boot - age).collect();
        takeovers.sort_unstable();
        Self(takeovers)
    }
}

/// Writes it.
///
/// # Errors
/// The database failed.
pub(super) async fn keep(
    store: &Store,
    group: GroupId,
    takeovers: &Takeovers,
    boot: BootTime,
    wall: WallTime,
) -> Result<(), Error> {
    Ok(store.put_own(group, KEY, &takeovers.to_wall(boot, wall)).await?)
}

/// What an earlier process kept; nothing if it cannot be read.
///
/// # Errors
/// The database failed.
pub(super) async fn restore(store: &Store, group: GroupId, boot: BootTime, wall: WallTime) -> Result<Takeovers, Error> {
    let kept: Vec<WallTime> = store.get_own(group, KEY).await?.unwrap_or(Ok(Vec::new())).unwrap_or_else(|error| {
        tracing::error!(%group, %error, "the history of takeovers cannot be read and begins anew");
        Vec::new()
    });
    Ok(Takeovers::from_wall(&kept, boot, wall))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    #[test]
    fn each_takeover_within_a_day_doubles_the_quiet_time_up_to_an_hour() {
        let mut takeovers = Takeovers::default();
        let quiet = |takeovers: &Takeovers, now| takeovers.quiet(Millis(5 * MINUTE), BootTime(now)).0 / MINUTE;
        assert_eq!(quiet(&takeovers, 0), 5, "custody from before this process");
        let mut seen = Vec::new();
        for n in 0..7 {
            takeovers.note(BootTime(n * 30 * MINUTE));
            seen.push(quiet(&takeovers, n * 30 * MINUTE));
        }
        assert_eq!(seen, [5, 10, 20, 40, 60, 60, 60]);
        let day = 24 * 60 * MINUTE;
        assert_eq!(quiet(&takeovers, day + 4 * 30 * MINUTE), 10, "two are younger than a day");
        assert_eq!(quiet(&takeovers, 2 * day), 5);
        takeovers.note(BootTime(3 * day));
        assert_eq!(quiet(&takeovers, 3 * day), 5);
    }

    #[tokio::test]
    async fn it_survives_the_process_and_the_machine() {
        let store = Store::memory(crate::store::MemoryDisk::default());
        let group = GroupId::from_bytes([7; 16]);
        let at = |hours: u64| (BootTime(hours * 60 * MINUTE), WallTime((1_000 + hours) * 60 * MINUTE));
        let mut takeovers = Takeovers::default();
        for hours in [1, 20, 30] {
            takeovers.note(at(hours).0);
        }
        let (boot, wall) = at(30);
        keep(&store, group, &takeovers, boot, wall).await.expect("in memory");
        let quiet = |takeovers: &Takeovers, now| takeovers.quiet(Millis(5 * MINUTE), now).0 / MINUTE;
        let restored = |boot, wall| {
            let store = &store;
            async move { restore(store, group, boot, wall).await.expect("in memory") }
        };
        let (boot, wall) = at(31);
        assert_eq!(restored(boot, wall).await, takeovers, "the process alone; the first was forgotten at the third");
        assert_eq!(quiet(&restored(BootTime(0), wall).await, BootTime(0)), 10, "the machine");
        assert_eq!(quiet(&restored(BootTime(0), at(50).1).await, BootTime(0)), 5, "one is older than a day");
        assert_eq!(quiet(&restored(boot, at(2).1).await, boot), 10, "a clock that was set back");
        assert_eq!(restore(&store, GroupId::from_bytes([8; 16]), boot, wall).await.expect("in memory"), Takeovers::default());
        store.put_tenant_value(group, KEY, b"no list", 9).await.expect("in memory");
        assert_eq!(restored(boot, wall).await, Takeovers::default());
    }

    #[test]
    fn other_quiet_times_stay_what_was_agreed() {
        let mut takeovers = Takeovers::default();
        for n in 0..1_000 {
            takeovers.note(BootTime(n));
        }
        assert_eq!(takeovers.0.len(), TAKEOVERS_MAX);
        assert_eq!(takeovers.quiet(Millis(2_000), BootTime(1_000)), Millis(2_000), "of a demonstration");
        assert_eq!(takeovers.quiet(Millis(180 * MINUTE), BootTime(1_000)), Millis(180 * MINUTE), "longer than an hour");
    }
}
