//! Fail points at durable writes: a store that is wrapped in them dies or refuses at the chosen write. For tests and simulation.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// What happens at the chosen write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies before it: nothing is stored, and nobody hears an answer any more.
    CrashBefore,
    /// The process dies after it: all is stored, and nobody hears an answer any more.
    CrashAfter,
    /// The disk is full: nothing is stored, the caller hears an error, and life goes on.
    Refuse,
    /// All is stored, but the caller hears an error: what it may believe is nothing.
    Doubt,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::CrashBefore, Self::CrashAfter, Self::Refuse, Self::Doubt];

    /// Whether the process dies of it.
    #[must_use]
    pub const fn is_crash(self) -> bool {
        match self {
            Self::CrashBefore | Self::CrashAfter => true,
            Self::Refuse | Self::Doubt => false,
        }
    }
}

/// A store behind fail points.
#[derive(Debug)]
pub struct Faulty<S: ?Sized> {
    pub inner: Arc<S>,
    pub points: Arc<FailPoints>,
}

impl<S: ?Sized> Faulty<S> {
    #[must_use]
    pub fn new(inner: Arc<S>) -> Self {
        Self { inner, points: Arc::default() }
    }
}

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    /// Calls do not return.
    Crashed,
    /// Calls return errors, so that whatever still waits for one can end and be dropped.
    Buried,
}

/// Counts durable writes and brings about the planned fault. One of these per life of a process.
#[derive(Debug)]
pub struct FailPoints {
    writes: AtomicU64,
    plan: Mutex<Option<(u64, Fault)>>,
    latency: Mutex<Duration>,
    life: watch::Sender<Life>,
}

impl Default for FailPoints {
    fn default() -> Self {
        let (plan, latency) = (Mutex::default(), Mutex::default());
        Self { writes: AtomicU64::new(0), plan, latency, life: watch::Sender::new(Life::Running) }
    }
}

impl FailPoints {
    /// Plans `fault` for the `n`-th write from the start of this life, the first being 1; replaces what was planned before.
    pub fn plan(&self, n: u64, fault: Fault) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = Some((n, fault));
    }

    /// Every write takes so much longer from now on (by tokio's clock).
    pub fn slow_down(&self, by: Duration) {
        *self.latency.lock().unwrap_or_else(PoisonError::into_inner) = by;
    }

    /// Writes that were begun, the planned one included.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Dies now: calls under way and all later ones do not return.
    pub fn crash(&self) {
        self.life.send_if_modified(|life| std::mem::replace(life, Life::Crashed) != Life::Crashed);
    }

    #[must_use]
    pub fn is_crashed(&self) -> bool {
        *self.life.borrow() != Life::Running
    }

    /// Returns when the process has died.
    pub async fn crashed(&self) {
        let _ = self.life.subscribe().wait_for(|life| *life != Life::Running).await; // the sender lives as long as self
    }

    /// Lets the calls that do not return end with an error: call it once nobody looks at their answers any more, so that tasks and
    /// threads that wait for them, and what they own, are freed.
    pub fn bury(&self) {
        self.life.send_replace(Life::Buried);
    }

    async fn buried(&self) {
        let _ = self.life.subscribe().wait_for(|life| *life == Life::Buried).await;
    }

    /// A call that writes nothing.
    ///
    /// # Errors
    /// Those of `read`, and `dead` after [`Self::bury`].
    pub async fn read<T, E>(&self, dead: impl FnOnce() -> E, read: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        if self.is_crashed() {
            self.buried().await;
            return Err(dead());
        }
        read.await
    }

    /// A call that writes durably.
    ///
    /// # Errors
    /// Those of `write`; `fault` for what was planned and after [`Self::bury`].
    pub async fn write<T, E>(&self, fault: impl FnOnce() -> E, write: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        if self.is_crashed() {
            self.buried().await;
            return Err(fault());
        }
        let n = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        let latency = *self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let planned = self.plan.lock().unwrap_or_else(PoisonError::into_inner).filter(|(at, _)| *at == n).map(|(_, fault)| fault);
        match planned {
            None => write.await,
            Some(Fault::CrashBefore) => {
                self.crash();
                self.buried().await;
                Err(fault())
            }
            Some(Fault::CrashAfter) => {
                let _ = write.await; // nobody hears it
                self.crash();
                self.buried().await;
                Err(fault())
            }
            Some(Fault::Refuse) => Err(fault()),
            Some(Fault::Doubt) => write.await.and_then(|_| Err(fault())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    async fn write(points: &FailPoints, disk: &AtomicU64) -> Result<u64, &'static str> {
        points.write(|| "fault", async { Ok(disk.fetch_add(1, Ordering::SeqCst)) }).await
    }

    #[tokio::test]
    async fn the_planned_write_fails_as_planned_and_no_other() {
        let table = [(Fault::Refuse, Err("fault"), 2), (Fault::Doubt, Err("fault"), 3)];
        for (fault, second, stored) in table {
            let (points, disk) = (FailPoints::default(), AtomicU64::new(0));
            points.plan(2, fault);
            assert_eq!(write(&points, &disk).await, Ok(0));
            assert_eq!(write(&points, &disk).await, second, "{fault:?}");
            assert!(write(&points, &disk).await.is_ok() && !points.is_crashed());
            assert_eq!((disk.load(Ordering::SeqCst), points.writes()), (stored, 3));
        }
    }

    #[tokio::test]
    async fn after_a_crash_nobody_hears_anything_until_the_burial() {
        for (fault, stored) in [(Fault::CrashBefore, 0), (Fault::CrashAfter, 1)] {
            let (points, disk) = (Arc::new(FailPoints::default()), Arc::new(AtomicU64::new(0)));
            points.plan(1, fault);
            let dying = tokio::spawn({
                let (points, disk) = (Arc::clone(&points), Arc::clone(&disk));
                async move { write(&points, &disk).await }
            });
            points.crashed().await;
            let reading = tokio::spawn({
                let points = Arc::clone(&points);
                async move { points.read(|| "dead", async { Ok(7) }).await }
            });
            tokio::task::yield_now().await;
            assert!(!dying.is_finished() && !reading.is_finished());
            points.bury();
            assert_eq!((dying.await.expect("ends"), reading.await.expect("ends")), (Err("fault"), Err("dead")));
            assert_eq!(disk.load(Ordering::SeqCst), stored, "{fault:?}");
        }
    }
}
