//! Tasks that belong to a process, so that several processes can share one thread and one of them can die.
//!
//! In the product a process is a process: [`spawn`] and [`blocking`] are Tokio's. In a simulation each node is a [`Process`]: whatever is
//! spawned within it, at any depth, is aborted by [`Process::kill`] and stands still after [`Process::freeze`], and blocking work runs in place, so that nothing depends on other threads.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::task::{AbortHandle, JoinError, JoinHandle};

tokio::task_local! {
    static PROCESS: Process;
}

/// A simulated process; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Process(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_frozen: AtomicBool,
    tasks: Mutex<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    running: Vec<AbortHandle>,
    /// Finished tasks are forgotten when there are so many entries.
    prune_at: usize,
    is_killed: bool,
    /// Those that wanted to go on while the process was frozen.
    waiting: Vec<Waker>,
}

impl Process {
    /// Runs `main` as a task of this process.
    pub fn run<F>(&self, main: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(PROCESS.scope(self.clone(), Gated { process: self.clone(), future: Box::pin(main) }));
        self.adopt(task.abort_handle());
        task
    }

    /// The process that the current task belongs to.
    #[must_use]
    pub fn current() -> Option<Self> {
        PROCESS.try_with(Clone::clone).ok()
    }

    /// Ends all tasks of this process without a word to them; what is spawned in it later ends at once.
    pub fn kill(&self) {
        let mut tasks = self.tasks();
        tasks.is_killed = true;
        for task in std::mem::take(&mut tasks.running) {
            task.abort();
        }
    }

    /// Nothing of this process goes on until [`Self::thaw`], as after SIGSTOP or on a suspended machine.
    pub fn freeze(&self) {
        self.0.is_frozen.store(true, Ordering::SeqCst);
    }

    /// Goes on.
    pub fn thaw(&self) {
        self.0.is_frozen.store(false, Ordering::SeqCst);
        for waker in std::mem::take(&mut self.tasks().waiting) {
            waker.wake();
        }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopt(&self, task: AbortHandle) {
        let mut tasks = self.tasks();
        if tasks.is_killed {
            return task.abort();
        }
        if tasks.running.len() >= tasks.prune_at {
            tasks.running.retain(|task| !task.is_finished());
            tasks.prune_at = 2 * tasks.running.len().max(32);
        }
        tasks.running.push(task);
    }
}

/// A future that stands still while its process is frozen.
struct Gated<F> {
    process: Process,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.process.0.is_frozen.load(Ordering::SeqCst) {
            self.process.tasks().waiting.push(context.waker().clone());
            return Poll::Pending;
        }
        self.future.as_mut().poll(context)
    }
}

/// As [`tokio::spawn`]; within a [`Process`] the task belongs to it.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match Process::current() {
        Some(process) => process.run(future),
        None => tokio::spawn(future),
    }
}

/// Makes a future that another kind of spawn runs ([`tokio::task::JoinSet`]) part of this process, so that what it spawns is too.
pub fn belong<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let process = Process::current();
    async move {
        match process {
            Some(process) => PROCESS.scope(process.clone(), Gated { process, future: Box::pin(future) }).await,
            None => future.await,
        }
    }
}

/// Runs work that blocks: on a thread for it, or in place within a [`Process`].
///
/// # Errors
/// The work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if Process::current().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    async fn count_for_ever(counter: Arc<AtomicU32>) {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_process_takes_its_descendants_along_and_nobody_else() {
        let (inside, outside) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let process = Process::default();
        let counted = Arc::clone(&inside);
        process.run(async move {
            let mut set = tokio::task::JoinSet::new();
            let deep = Arc::clone(&counted);
            set.spawn(belong(async move {
                spawn(count_for_ever(deep));
            }));
            count_for_ever(counted).await;
        });
        spawn(count_for_ever(Arc::clone(&outside)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = inside.load(Ordering::SeqCst);
        assert!(before >= 190, "both tasks of the process run: {before}");
        process.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(inside.load(Ordering::SeqCst), before);
        assert!(outside.load(Ordering::SeqCst) >= 190);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_process_stands_still_and_goes_on_where_it_was() {
        let counter = Arc::new(AtomicU32::new(0));
        let process = Process::default();
        process.run(count_for_ever(Arc::clone(&counter)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        process.freeze();
        let before = counter.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(counter.load(Ordering::SeqCst), before);
        process.thaw();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let after = counter.load(Ordering::SeqCst);
        assert!((before + 40..before + 60).contains(&after), "{before} -> {after}");
    }

    #[tokio::test]
    async fn blocking_work_stays_on_the_thread_of_a_process() {
        let here = std::thread::current().id();
        assert_ne!(blocking(|| std::thread::current().id()).await.expect("no panic"), here);
        let within = Process::default().run(async { blocking(|| std::thread::current().id()).await });
        assert_eq!(within.await.expect("not killed").expect("no panic"), here);
    }
}
