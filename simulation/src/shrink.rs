//! From a scenario that fails to a short one that still does: steps are left out as long as something remains violated.

use crate::script::Script;

/// Runs tried at most.
const TRIES_MAX: u32 = 200;

/// The shortest script found for which `fails` is true; `script` itself if nothing can be left out.
#[must_use]
pub fn shrink(script: &Script, mut fails: impl FnMut(&Script) -> bool) -> Script {
    let mut best = script.clone();
    let mut tries = 0;
    let mut chunk = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut has_changed = false;
        let mut at = 0;
        while at < best.steps.len() && tries < TRIES_MAX {
            let mut candidate = best.clone();
            let end = (at + chunk).min(candidate.steps.len());
            candidate.steps.drain(at..end);
            tries += 1;
            if fails(&candidate) {
                best = candidate;
                has_changed = true;
            } else {
                at = end;
            }
        }
        if tries >= TRIES_MAX || (chunk == 1 && !has_changed) {
            return best;
        }
        chunk = (chunk / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::script::{Fault, Step};

    #[test]
    fn only_what_matters_is_left() {
        let step = |at_ms, fault| Step { at_ms, fault };
        let noise = (0..20).map(|n| step(n * 10, Fault::SetClock(Machine::Cloud, 1)));
        let steps: Vec<_> =
            noise.chain([step(500, Fault::Kill(Machine::Rio)), step(600, Fault::Kill(Machine::Patras))]).collect();
        let script = Script { steps, ..Script::default() };
        let has = |script: &Script, machine| script.steps.iter().any(|step| step.fault == Fault::Kill(machine));
        let shrunk = shrink(&script, |script| has(script, Machine::Rio) && has(script, Machine::Patras));
        assert_eq!(shrunk.steps, [step(500, Fault::Kill(Machine::Rio)), step(600, Fault::Kill(Machine::Patras))]);
    }
}
