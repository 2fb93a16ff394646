//! Scenarios as data: what happens when, and what must come of it.

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::network::Link;

/// Longest scenario.
pub const LENGTH_MS_MAX: u64 = 24 * 3_600_000;
/// Steps of one scenario.
pub const STEPS_MAX: usize = 10_000;
/// Clocks are wrong by at most so many percent: the drift that the protocol allows for.
pub const DRIFT_PERCENT_MAX: i8 = 10;
/// Motes of one scenario.
pub const MOTES_MAX: u32 = 10_000;

/// Why a script is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no valid TOML of its form: {0}")]
    Toml(#[from] toml::de::Error),
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: &'static str },
}

/// One scenario. Everything has a default, so that a scenario says only what is special about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    pub name: String,
    /// Decides everything that chance would.
    pub seed: u64,
    pub ttl_ms: u64,
    /// How long the customer must be back before custody is given back.
    pub quiet_ms: u64,
    /// The contract comes of marketplace, negotiation and arbitrator; else one is in force from the start.
    pub market: bool,
    pub motes: u32,
    /// Uplinks per 1,000 s of all motes together; 0: no radio at all, only lease traffic.
    pub uplinks_per_1000_s: u64,
    pub confirmed_percent: u32,
    /// Motes that join over the air, and after how many seconds such a one is switched off and on and joins anew (0: never).
    pub joining_percent: u32,
    pub rejoin_s: u32,
    /// Loss on each radio link.
    pub radio_loss_percent: u32,
    /// The contract's clause of that name: a frame is owed as soon as it can be with the insurer, however slow the disk of its node.
    pub mirror: bool,
    /// All links between machines.
    pub link: Link,
    /// From the start (custody is settled by then) to where all faults stop.
    pub length_ms: u64,
    pub steps: Vec<Step>,
    /// A process dies at one of its durable writes, and another one starts a little later.
    pub crash: Option<Crash>,
    pub expect: Expect,
}

/// A fail point: the n-th durable write of a machine since the radio began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crash {
    pub machine: Machine,
    /// From 1.
    pub write: u64,
    pub of: Written,
    /// The write is on disk, but nobody was told.
    pub after: bool,
}

/// What a node writes durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Written {
    Database,
    Votes,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            name: String::new(),
            seed: 1,
            ttl_ms: 1_000,
            quiet_ms: 1_000,
            market: false,
            motes: 10,
            uplinks_per_1000_s: 5_000,
            confirmed_percent: 10,
            joining_percent: 0,
            rejoin_s: 0,
            radio_loss_percent: 5,
            mirror: false,
            link: Link::default(),
            length_ms: 20_000,
            steps: Vec::new(),
            crash: None,
            expect: Expect::default(),
        }
    }
}

/// Something happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub at_ms: u64,
    #[serde(rename = "do")]
    pub fault: Fault,
}

/// What can happen. All of it ends with the scenario's length, except drift.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The process dies without a word.
    Kill(Machine),
    /// A new process on the same disk; nothing if one runs.
    Start(Machine),
    /// The machine burns down, its disk too; nothing starts there again. Only the customer's edge: its insurer and the witness are left.
    Destroy(Machine),
    /// The marketplace's process dies; another starts. Nothing in a scenario without a market.
    CloseMarketplace,
    OpenMarketplace,
    /// The process is asked to end, and gets the time that it takes.
    ShutDown(Machine),
    /// The process stands still; its clock goes on.
    Freeze(Machine),
    Thaw(Machine),
    /// Nothing passes between two machines.
    Cut(Machine, Machine),
    /// Nothing passes from the first to the second.
    CutOneWay(Machine, Machine),
    /// Nothing passes from or to a machine.
    Isolate(Machine),
    /// A machine hears nothing but is heard.
    Deafen(Machine),
    /// All links are as at the start.
    MendLinks,
    /// All links are like this from now on.
    Links(Link),
    /// Each write of a machine takes so many milliseconds.
    SlowDisk(Machine, u64),
    /// Writes of a machine fail.
    FillDisk(Machine),
    EmptyDisk(Machine),
    /// The gateway of an edge is silent. Nothing of a machine without one.
    Unplug(Machine),
    PlugIn(Machine),
    /// Containers of a machine end at the engine's next look, and cannot be started.
    BreakContainers(Machine),
    MendContainers(Machine),
    /// A machine's boot clock is wrong by so many percent, -10 to 10.
    Drift(Machine, i8),
    /// A machine's wall clock is set by so many milliseconds.
    SetClock(Machine, i64),
}

/// What must come of it beyond what must always be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// How often the insurer gained custody before the faults stopped.
    pub takeovers: Option<u64>,
    /// The customer held throughout.
    pub undisturbed: bool,
    /// From the first step to the insurer's custody at the most.
    pub takeover_ms_max: Option<u64>,
    /// Sessions that motes began over the air, at the least; and how many of them by the insurer.
    pub joined: u64,
    pub joined_at_insurer: u64,
    /// Contracts that came into force, in a scenario with a market.
    pub contracts: Option<usize>,
    /// Motes that the insurer hears well enough, as it told the customer by the time at which the faults stop; of the others it has told nothing.
    pub covered: Option<u64>,
}

impl Script {
    /// Reads a scenario.
    ///
    /// # Errors
    /// Unknown fields, wrong types or values outside the limits.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let script: Self = toml::from_str(text)?;
        script.check()?;
        Ok(script)
    }

    /// # Errors
    /// [`Error::Field`].
    pub fn check(&self) -> Result<(), Error> {
        let unless = |holds: bool, field, reason| if holds { Ok(()) } else { Err(Error::Field { field, reason }) };
        unless((1..=LENGTH_MS_MAX).contains(&self.length_ms), "length_ms", "1 ms to a day")?;
        unless((200..=600_000).contains(&self.ttl_ms), "ttl_ms", "200 ms to ten minutes")?;
        unless((1..=MOTES_MAX).contains(&self.motes), "motes", "1 to 10,000")?;
        let percents = [self.confirmed_percent, self.joining_percent, self.radio_loss_percent];
        unless(percents.iter().all(|percent| *percent <= 100), "percent", "at most 100")?;
        unless(self.steps.len() <= STEPS_MAX, "steps", "at most 10,000")?;
        let drifts = |step: &Step| match step.fault {
            Fault::Drift(_, percent) => percent.abs() <= DRIFT_PERCENT_MAX,
            _ => true,
        };
        unless(self.steps.iter().all(drifts), "steps.drift", "-10 to 10 percent")?;
        let destroyed: Vec<_> = self
            .steps
            .iter()
            .filter_map(|step| if let Fault::Destroy(machine) = step.fault { Some(machine) } else { None })
            .collect();
        unless(
            destroyed.iter().all(|machine| *machine == Machine::Rio),
            "steps.destroy",
            "only rio; without a second edge nobody can serve",
        )?;
        unless(self.steps.iter().all(|step| step.at_ms <= self.length_ms), "steps.at_ms", "within the length")?;
        unless(self.steps.is_sorted_by_key(|step| step.at_ms), "steps", "in the order of their times")
    }

    /// The scenario on one line of JSON, as [`Self::from_line`] reads it.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// # Errors
    /// It is no scenario in JSON.
    pub fn from_line(line: &str) -> Result<Self, String> {
        let script: Self = serde_json::from_str(line).map_err(|error| error.to_string())?;
        script.check().map_err(|error| error.to_string())?;
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_survives_both_of_its_forms() {
        let script = Script {
            name: "all".to_owned(),
            steps: vec![
                Step { at_ms: 1, fault: Fault::Kill(Machine::Rio) },
                Step { at_ms: 2, fault: Fault::CutOneWay(Machine::Rio, Machine::Patras) },
                Step { at_ms: 2, fault: Fault::Links(Link { loss_ppm: 300_000, ..Link::default() }) },
                Step { at_ms: 3, fault: Fault::MendLinks },
                Step { at_ms: 4, fault: Fault::Drift(Machine::Patras, -10) },
            ],
            ..Script::default()
        };
        assert_eq!(Script::from_line(&script.to_line()), Ok(script.clone()));
        let text = toml::to_string(&script).expect("TOML");
        assert_eq!(Script::parse(&text).expect("the same"), script);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, field) in [
            ("length_ms = 0", "length_ms"),
            ("steps = [{ at_ms = 30000, do = { kill = \"rio\" } }]", "steps.at_ms"),
            ("steps = [{ at_ms = 2, do = \"mend_links\" }, { at_ms = 1, do = \"mend_links\" }]", "steps"),
            ("sede = 1", "sede"),
            ("steps = [{ at_ms = 2, do = { kill = \"nobody\" } }]", "nobody"),
        ] {
            let error = Script::parse(text).expect_err(text).to_string();
            assert!(error.contains(field), "{text}: {error}");
        }
    }
}
