//! The faults, as data: what each does, step by step, and who must hold custody afterwards.
//!
//! A new fault is a variant of [`Kind`], its name, and its steps in [`Kind::steps`].

use Act::{
    Apply, Await, CutPower, Fill, Free, Heal, Kill, KillHolder, KillWorkload, Last, LastUpTo, Mark, Pause, RestorePower, Resume,
    Start, StepWallClock, Terminate,
};
use Who::{Arbitrator, Cloud, Marketplace, Patras, Rio};

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Rio,
    Patras,
    Cloud,
    Arbitrator,
    Marketplace,
}

impl Who {
    pub const fn name(self) -> &'static str {
        match self {
            Rio => "rio",
            Patras => "patras",
            Cloud => "cloud",
            Arbitrator => "arbitrator",
            Marketplace => "marketplace",
        }
    }
}

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its only link has no carrier.
    Link(Who),
    /// These two do not reach each other.
    Pair(Who, Who),
    /// Nothing reaches it; what it sends arrives.
    Deaf(Who),
    /// Nothing that it sends arrives; it hears all.
    Mute(Who),
    /// Of every packet between any two, with this chance, it is dropped.
    Loss { percent: u8 },
}

/// What a step waits for, counted from the fault on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// An event of this name in its timeline.
    Says(Who, &'static str),
    /// The cloud has a reading that it heard after it had gained custody.
    Live(Who),
    /// The cloud has a reading that it heard after its containers had been killed.
    ServesAgain(Who),
}

/// One step of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The fault begins: a takeover is measured from here.
    Mark,
    /// SIGKILL; nothing if it does not run.
    Kill(Who),
    /// SIGKILL for the edge that holds custody, as far as is known.
    KillHolder,
    /// SIGKILL for the containers that the node runs, which goes on itself.
    KillWorkload(Who),
    /// SIGTERM, without waiting for its end before the next step.
    Terminate(Who),
    /// Nothing if it runs.
    Start(Who),
    /// SIGSTOP.
    Pause(Who),
    /// SIGCONT.
    Resume(Who),
    Apply(Cut),
    /// The network works again.
    Heal,
    CutPower(Who),
    RestorePower(Who),
    /// No free block on its disk.
    Fill(Who),
    Free(Who),
    /// The wall clock of this process jumps by so many seconds.
    StepWallClock(Who, i64),
    Await(Until),
    /// The fault lasts so many tenths of a ttl.
    Last(u32),
    /// The fault lasts for a random time up to so many tenths of a ttl.
    LastUpTo(u32),
}

/// Who holds custody in consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It gains custody by a vote after the fault began.
    Gains(Who),
    /// Custody does not move.
    Stays,
    /// The timing decides.
    Either,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// Whoever serves, in the middle of anything.
    KillServing,
    KillRio,
    KillPatras,
    KillPatrasHolding,
    KillArbitrator,
    KillCloud,
    KillMarketplace,
    KillWorkload,
    StopRio,
    StopPatras,
    StopArbitrator,
    StopCloud,
    StopMarketplace,
    CutRio,
    CutPatras,
    CutArbitrator,
    CutCloud,
    CutRioFromPatras,
    CutRioFromArbitrator,
    CutPatrasFromArbitrator,
    CutPatrasHolding,
    CutCloudInHandback,
    DeafRio,
    MuteRio,
    DeafPatras,
    MutePatras,
    DeafArbitrator,
    Loss30,
    RestartRio,
    RestartArbitratorBetween,
    BothRioFirst,
    BothPatrasFirst,
    Planned,
    PowerRio,
    PowerPatras,
    PowerPatrasHolding,
    PowerCloud,
    PowerArbitrator,
    FullRio,
    FullPatras,
    FullPatrasHolding,
    FullCloud,
    FullArbitrator,
    ClockRioForward,
    ClockRioBack,
    ClockPatrasForward,
}

/// A kind, spelled out.
#[derive(Debug, Clone)]
pub struct Script {
    /// Brings about the situation in which the fault strikes; custody is with rio before.
    pub prepare: Vec<Act>,
    /// The fault and its end.
    pub inject: Vec<Act>,
    pub expect: Expect,
    /// It may also strike at any moment of a takeover or a hand-back.
    pub in_handover: bool,
}

const fn says(who: Who, event: &'static str) -> Act {
    Await(Until::Says(who, event))
}

/// Rio is killed, patras serves and has replayed, rio comes back as follower.
fn until_rio_follows() -> Vec<Act> {
    vec![Kill(Rio), says(Patras, "custody_gained"), says(Patras, "replay_settled"), Await(Until::Live(Patras)), Start(Rio)]
}

const fn power_cut(who: Who) -> [Act; 4] {
    [CutPower(who), RestorePower(who), LastUpTo(30), Start(who)]
}

impl Script {
    fn stays(inject: &[Act]) -> Self {
        Self { prepare: Vec::new(), inject: [&[Mark], inject].concat(), expect: Expect::Stays, in_handover: true }
    }

    /// Patras takes over; what ends the fault comes after its first live reading.
    fn moves(inject: &[Act], end: &[Act]) -> Self {
        let inject = [&[Mark], inject, &[Await(Until::Live(Patras))], end].concat();
        Self { prepare: Vec::new(), inject, expect: Expect::Gains(Patras), in_handover: false }
    }

    /// Patras serves, rio is back and level; rio takes over from it. What ends the fault comes after rio's first live reading.
    fn moves_back(inject: &[Act], end: &[Act]) -> Self {
        let prepare = [until_rio_follows(), vec![says(Rio, "level"), LastUpTo(5)]].concat();
        let inject = [&[Mark], inject, &[Await(Until::Live(Rio))], end].concat();
        Self { prepare, inject, expect: Expect::Gains(Rio), in_handover: false }
    }

    fn either(inject: &[Act]) -> Self {
        Self { prepare: Vec::new(), inject: [&[Mark], inject].concat(), expect: Expect::Either, in_handover: false }
    }
}

impl Kind {
    /// As on the command line and in the results.
    pub fn name(self) -> String {
        use clap::ValueEnum as _;
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What happens, and what must be true afterwards.
    pub fn script(self) -> Script {
        match self {
            Self::KillServing => Script { in_handover: true, ..Script::either(&[KillHolder, LastUpTo(30)]) },
            Self::KillRio => Script::moves(&[Kill(Rio)], &[Start(Rio)]),
            Self::KillPatras => Script::stays(&[Kill(Patras), LastUpTo(30), Start(Patras)]),
            Self::KillPatrasHolding => Script::moves_back(&[Kill(Patras)], &[Start(Patras)]),
            Self::KillArbitrator => Script::stays(&[Kill(Arbitrator), LastUpTo(30), Start(Arbitrator)]),
            Self::KillCloud => Script::stays(&[Kill(Cloud), LastUpTo(30), Start(Cloud)]),
            Self::KillMarketplace => Script::stays(&[Kill(Marketplace), LastUpTo(30), Start(Marketplace)]),
            Self::KillWorkload => {
                Script { in_handover: false, ..Script::stays(&[KillWorkload(Rio), Await(Until::ServesAgain(Rio))]) }
            }
            Self::StopRio => Script::moves(&[Pause(Rio)], &[LastUpTo(20), Resume(Rio)]),
            Self::StopPatras => Script::stays(&[Pause(Patras), Last(20), LastUpTo(20), Resume(Patras)]),
            Self::StopArbitrator => Script::stays(&[Pause(Arbitrator), Last(20), LastUpTo(20), Resume(Arbitrator)]),
            Self::StopCloud => Script::stays(&[Pause(Cloud), Last(20), LastUpTo(20), Resume(Cloud)]),
            Self::StopMarketplace => Script::stays(&[Pause(Marketplace), Last(20), LastUpTo(20), Resume(Marketplace)]),
            Self::CutRio => Script::moves(
                &[Apply(Cut::Link(Rio)), says(Rio, "custody_lost"), says(Patras, "custody_gained")],
                &[LastUpTo(20), Heal],
            ),
            Self::CutPatras => Script::stays(&[Apply(Cut::Link(Patras)), Last(20), LastUpTo(20), Heal]),
            Self::CutArbitrator => Script::stays(&[Apply(Cut::Link(Arbitrator)), Last(20), LastUpTo(30), Heal]),
            Self::CutCloud => Script::stays(&[Apply(Cut::Link(Cloud)), Last(20), LastUpTo(20), Heal]),
            Self::CutRioFromPatras => Script::stays(&[Apply(Cut::Pair(Rio, Patras)), Last(30), LastUpTo(20), Heal]),
            Self::CutRioFromArbitrator => Script::stays(&[Apply(Cut::Pair(Rio, Arbitrator)), Last(30), LastUpTo(20), Heal]),
            Self::CutPatrasFromArbitrator => Script::stays(&[Apply(Cut::Pair(Patras, Arbitrator)), Last(30), LastUpTo(20), Heal]),
            Self::CutPatrasHolding => Script::moves_back(&[Apply(Cut::Link(Patras))], &[LastUpTo(10), Heal]),
            Self::CutCloudInHandback => Script {
                prepare: [until_rio_follows(), vec![says(Rio, "level"), LastUpTo(20)]].concat(),
                inject: vec![Mark, Apply(Cut::Link(Cloud)), Last(30), Heal],
                expect: Expect::Either,
                in_handover: false,
            },
            Self::DeafRio => Script::moves(&[Apply(Cut::Deaf(Rio))], &[LastUpTo(20), Heal]),
            Self::MuteRio => Script::moves(&[Apply(Cut::Mute(Rio))], &[LastUpTo(20), Heal]),
            Self::DeafPatras => Script::stays(&[Apply(Cut::Deaf(Patras)), Last(30), LastUpTo(10), Heal]),
            Self::MutePatras => Script::stays(&[Apply(Cut::Mute(Patras)), Last(30), LastUpTo(10), Heal]),
            Self::DeafArbitrator => Script::stays(&[Apply(Cut::Deaf(Arbitrator)), Last(30), LastUpTo(10), Heal]),
            Self::Loss30 => Script::either(&[Apply(Cut::Loss { percent: 30 }), Last(60), LastUpTo(40), Heal]),
            Self::RestartRio => Script::either(&[Kill(Rio), Start(Rio)]),
            Self::RestartArbitratorBetween => {
                Script::moves(&[Kill(Rio), LastUpTo(10), Kill(Arbitrator), Start(Arbitrator)], &[Start(Rio)])
            }
            Self::BothRioFirst => {
                Script::either(&[Kill(Rio), LastUpTo(15), Kill(Patras), LastUpTo(10), Start(Rio), LastUpTo(20), Start(Patras)])
            }
            Self::BothPatrasFirst => {
                Script::either(&[Kill(Patras), LastUpTo(15), Kill(Rio), LastUpTo(10), Start(Patras), LastUpTo(20), Start(Rio)])
            }
            Self::Planned => Script::moves(&[Terminate(Rio), says(Patras, "custody_gained")], &[Start(Rio)]),
            Self::PowerRio => {
                Script::moves(&[Apply(Cut::Link(Rio))], &[LastUpTo(20), CutPower(Rio), Heal, RestorePower(Rio), Start(Rio)])
            }
            Self::PowerPatras => Script::stays(&power_cut(Patras)),
            Self::PowerPatrasHolding => Script::moves_back(&[CutPower(Patras)], &[RestorePower(Patras), Start(Patras)]),
            Self::PowerCloud => Script::stays(&power_cut(Cloud)),
            Self::PowerArbitrator => Script::stays(&power_cut(Arbitrator)),
            Self::FullRio => Script::either(&[Fill(Rio), Last(30), LastUpTo(20), Free(Rio)]),
            Self::FullPatras => Script::either(&[Fill(Patras), Last(30), LastUpTo(20), Free(Patras)]),
            Self::FullPatrasHolding => Script::moves_back(&[Fill(Patras)], &[Free(Patras)]),
            Self::FullCloud => Script::stays(&[Fill(Cloud), Last(30), LastUpTo(20), Free(Cloud)]),
            Self::FullArbitrator => Script::stays(&[Fill(Arbitrator), Last(30), LastUpTo(20), Free(Arbitrator)]),
            Self::ClockRioForward => Script::stays(&[StepWallClock(Rio, 3_600), Last(30), StepWallClock(Rio, 0)]),
            Self::ClockRioBack => Script::stays(&[StepWallClock(Rio, -3_600), Last(30), StepWallClock(Rio, 0)]),
            Self::ClockPatrasForward => Script::stays(&[StepWallClock(Patras, 3_600), Last(30), StepWallClock(Patras, 0)]),
        }
    }

    /// Of three faults of this kind, so many strike in a handover.
    pub const fn thirds_in_handover(self) -> u64 {
        if matches!(self, Self::KillServing) { 2 } else { 1 }
    }

    /// Kinds that need a disk of the node's own.
    pub const fn needs_disk(self) -> bool {
        matches!(
            self,
            Self::PowerRio
                | Self::PowerPatras
                | Self::PowerPatrasHolding
                | Self::PowerCloud
                | Self::PowerArbitrator
                | Self::FullRio
                | Self::FullPatras
                | Self::FullPatrasHolding
                | Self::FullCloud
                | Self::FullArbitrator
        )
    }

    /// Kinds that need to see the containers as processes of this machine.
    pub const fn needs_embedded_engine(self) -> bool {
        matches!(self, Self::KillWorkload)
    }

    /// Kinds that need a wall clock of the process's own.
    pub const fn needs_clock(self) -> bool {
        matches!(self, Self::ClockRioForward | Self::ClockRioBack | Self::ClockPatrasForward)
    }
}
