//! Work that is not cut short.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::task;

/// Runs what has begun to its end, even if whoever waits for it goes away: a client that hangs up, a time limit. Without this a change
/// can be on disk while the steps that follow it (telling those who wait, letting go of the lock at the right time) are lost.
#[derive(Debug, Clone)]
pub struct Uninterrupted(Arc<Semaphore>);

impl Uninterrupted {
    /// At most `places` pieces of work at a time; more wait, and may be given up while they do.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Semaphore::new(places)))
    }

    /// The result of `work`; it panics if `work` did.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let place = Arc::clone(&self.0).acquire_owned().await.ok(); // the semaphore is never closed
        to_its_end(async move {
            let result = work.await;
            drop(place);
            result
        })
        .await
    }
}

/// The same for work of which there is little: the result of `work`; it panics if `work` did.
pub async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match task::spawn(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // the runtime is going down
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_has_begun_ends_though_nobody_waits() {
        let work = Uninterrupted::new(1);
        let ((begun, begins), (go, gone), (ended, ends)) =
            (oneshot::channel::<()>(), oneshot::channel::<()>(), oneshot::channel::<()>());
        let waiting = tokio::spawn({
            let work = work.clone();
            async move {
                work.run(async move {
                    let _ = begun.send(());
                    let _ = gone.await;
                    let _ = ended.send(());
                })
                .await;
            }
        });
        begins.await.expect("begins");
        waiting.abort();
        assert!(waiting.await.is_err());
        let second = tokio::spawn({
            let work = work.clone();
            async move { work.run(async { 7 }).await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "one place");
        go.send(()).expect("it still runs");
        ends.await.expect("it ended");
        assert_eq!(second.await.expect("ends"), 7);
    }
}
