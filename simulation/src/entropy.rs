//! The randomness of the operating system, of which a scenario has its own: keys, nonces and sealed content, and the order of hash maps, are
//! equal in equal scenarios.
//!
//! The standard library and all crates ask the C library's `getrandom`; this program's function of that name stands before it (build.rs
//! exports it). Threads that play no scenario get the kernel's.

use std::cell::RefCell;

use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

thread_local! {
    static SCENARIO: RefCell<Option<ChaCha8Rng>> = const { RefCell::new(None) };
}

/// Does something on a thread with the randomness of a seed: one of its own, because hash maps take their keys from the thread.
pub fn with_seed<T: Send>(seed: u64, act: impl FnOnce() -> T + Send) -> T {
    let scenario = || {
        SCENARIO.set(Some(ChaCha8Rng::seed_from_u64(seed)));
        act()
    };
    std::thread::scope(|scope| scope.spawn(scenario).join()).unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
}

/// getrandom(2).
///
/// # Safety
/// `buffer` has room for `length` bytes.
#[expect(unsafe_code, reason = "stands in for the C library's function")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    let of_scenario = |rng: &RefCell<Option<ChaCha8Rng>>| {
        let mut rng = rng.try_borrow_mut().ok()?;
        let rng = rng.as_mut()?;
        // The caller's buffer may not be initialised: it is written, never read.
        for place in 0..length {
            let byte = rng.next_u32().to_le_bytes()[0];
            // SAFETY: below `length`, for which the caller vouches.
            unsafe { buffer.add(place).write(byte) };
        }
        isize::try_from(length).ok()
    };
    match SCENARIO.try_with(of_scenario).ok().flatten() {
        Some(written) => written,
        // SAFETY: the caller's own arguments.
        None => isize::try_from(unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) }).unwrap_or(-1),
    }
}
