//! Waiting for a state by asking for it again and again.

use std::path::Path;
use std::time::{Duration, Instant};

/// Asks until there is an answer.
///
/// # Errors
/// That of `ask`; there was none within `bound`.
pub async fn until<T>(
    what: &str,
    bound: Duration,
    every: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        anyhow::ensure!(begun.elapsed() < bound, "{what}: not within {} s", bound.as_secs());
        tokio::time::sleep(every).await;
    }
}

/// Asks until the answer has stayed the same for a second: for what has an end that nobody announces.
///
/// # Errors
/// That of `ask`.
pub async fn until_still<T: PartialEq>(mut ask: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (mut known, mut since) = (ask().await?, Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = ask().await?;
        if now != known {
            (known, since) = (now, Instant::now());
        }
    }
    Ok(known)
}

/// Waits until a log has this text.
///
/// # Errors
/// Not within `bound`.
pub async fn until_said(log: &Path, text: &str, bound: Duration) -> anyhow::Result<()> {
    let what = format!("{text} in {}", log.display());
    let has = || std::fs::read_to_string(log).is_ok_and(|all| all.contains(text));
    until(&what, bound, Duration::from_millis(50), async || Ok(has().then_some(()))).await
}
