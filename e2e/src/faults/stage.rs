//! A deployment on which faults strike: processes in namespaces, disks, what was observed so far.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use contracts::time::{Millis, WallTime};
use edge_node::api::ReceivedReading;
use edge_node::timeline::Event;
use motes::audit::Limits;

use super::disk::Disk;
use super::kind::{Act, Cut, Until, Who};
use super::network::Network;
use super::plan::Dice;
use crate::observe::{Observer, Said};
use crate::poll;
use crate::world::{Settings, WallClocks, World};

/// Nothing that a fault waits for takes longer.
const AWAIT_MAX: Duration = Duration::from_secs(30);
/// Once all faults are healed, rio holds again within this time.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// Between two looks at something that other processes do.
const LOOK: Duration = Duration::from_millis(20);
/// What a standby heard alone is on the insured node's disk after this time: an offer after 30 ms, its answer, a slow moment.
const OFFER_MS: u64 = 200;

/// Everything that runs, and what is known about it.
#[derive(Debug)]
pub struct Stage<'a> {
    pub world: World,
    pub observer: Observer,
    pub rows: Vec<ReceivedReading>,
    network: &'a Network,
    /// Where the fault began: index into what was said, and the moment.
    pub mark: (usize, WallTime),
    /// Since when the standby could not rely on the insured node.
    rio_gone: Option<WallTime>,
    /// By how many seconds the wall clock of a process was set off, and from when on.
    steps: Vec<(Who, WallTime, i64)>,
    /// A member voted for another than the holder in the holder's epoch: it promises the holder nothing until the next.
    pub dissent: bool,
    /// Intervals in which a process was stopped by SIGSTOP.
    pub pauses: Vec<(Who, WallTime, Option<WallTime>)>,
    /// When an edge was killed or told to end.
    pub deaths: Vec<(Who, WallTime)>,
    /// Whose containers were killed, and when they were gone.
    workload_killed: Option<(Who, WallTime)>,
    /// When a process that was told to end was told.
    pub told_to_end: Option<WallTime>,
    /// See [`motes::audit::Limits`].
    pub loss_margin_ms: u64,
    /// Dropped after the processes.
    disks: BTreeMap<Who, Disk>,
}

/// The name of an event in the timeline.
pub fn name_of(event: &Event) -> String {
    let value = serde_json::to_value(event).unwrap_or_default();
    value["event"].as_str().unwrap_or_default().to_owned()
}

impl<'a> Stage<'a> {
    /// Starts a deployment below `directory` and waits until it is insured and the radio is on.
    pub async fn start(
        settings: Settings,
        network: &'a Network,
        directory: &Path,
        has_disks: bool,
        clocks: Option<WallClocks>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut disks = BTreeMap::new();
        if has_disks {
            for who in [Who::Rio, Who::Patras, Who::Cloud, Who::Arbitrator] {
                disks.insert(who, Disk::create(&directory.join(who.name()))?);
            }
        }
        if let Some(clocks) = &clocks {
            std::fs::create_dir_all(&clocks.directory)?;
            for (name, _) in crate::address::PROCESSES {
                std::fs::write(clocks.directory.join(name), "+0\n")?;
            }
        }
        let mut world = World::prepare(settings, directory, network.addresses(), Some(network.namespace("radio")))?;
        world.wall_clocks = clocks;
        let now = world.clock.wall();
        let observer = Observer::new(now, true);
        let mut stage = Self {
            world,
            observer,
            rows: Vec::new(),
            network,
            mark: (0, now),
            rio_gone: None,
            steps: Vec::new(),
            dissent: false,
            pauses: Vec::new(),
            deaths: Vec::new(),
            workload_killed: None,
            told_to_end: None,
            loss_margin_ms: Limits::default().loss_margin_ms,
            disks,
        };
        if let Err(error) = Box::pin(crate::insure(&mut stage.world, &mut stage.observer)).await {
            stage.world.stop().await;
            return Err(error.context("the deployment did not come up"));
        }
        Ok(stage)
    }

    /// Ends all processes.
    pub async fn stop(mut self) {
        // What is stopped by a signal could not end in order.
        for who in [Who::Rio, Who::Patras, Who::Cloud, Who::Arbitrator, Who::Marketplace] {
            self.world.resume(who.name());
        }
        self.world.stop().await;
    }

    fn disk(&self, who: Who) -> anyhow::Result<&Disk> {
        self.disks.get(&who).with_context(|| format!("{} has no disk of its own", who.name()))
    }

    /// Carries out one step of a fault.
    pub async fn act(&mut self, act: Act, dice: &mut Dice) -> anyhow::Result<()> {
        let now = self.world.clock.wall();
        let tenth = self.world.settings.ttl_ms / 10;
        match act {
            Act::Mark => {
                self.observer.catch_up();
                self.mark = (self.observer.seen.len(), now);
                self.workload_killed = None;
            }
            Act::Kill(who) => self.kill(who).await?,
            Act::KillHolder => {
                self.observer.catch_up();
                self.kill(self.holder()).await?;
            }
            Act::KillWorkload(who) => {
                self.world.kill_containers(who.name())?;
                self.workload_killed = Some((who, self.world.clock.wall()));
            }
            Act::Terminate(who) => {
                self.told_to_end = Some(now);
                self.world.tell_to_end(who.name())?;
            }
            Act::Start(who) => self.start_process(who).await?,
            Act::Pause(who) => {
                self.note_rio_gone(who == Who::Rio, now);
                self.world.pause(who.name())?;
                self.pauses.push((who, now, None));
            }
            Act::Resume(who) => self.resume(who),
            Act::Apply(cut) => {
                self.note_rio_gone(touches_the_edges(cut), now);
                self.network.apply(cut)?;
            }
            Act::Heal => self.network.heal()?,
            Act::CutPower(who) => self.cut_power(who).await?,
            Act::RestorePower(who) => self.disk(who)?.restore_power()?,
            Act::Fill(who) => {
                self.note_rio_gone(who == Who::Rio, now);
                self.world.end_life(who.name(), now);
                self.disk(who)?.fill()?;
            }
            Act::Free(who) => self.disk(who)?.free()?,
            Act::StepWallClock(who, seconds) => {
                let clocks = self.world.wall_clocks.as_ref().context("processes have no wall clocks of their own")?;
                std::fs::write(clocks.directory.join(who.name()), format!("{seconds:+}\n"))?;
                self.steps.push((who, now, seconds));
            }
            Act::Await(until) => self.wait(until).await?,
            Act::Last(tenths) => tokio::time::sleep(Duration::from_millis(tenth * u64::from(tenths))).await,
            Act::LastUpTo(tenths) => {
                let time = dice.below(tenth * u64::from(tenths) + 1);
                tokio::time::sleep(Duration::from_millis(time)).await;
            }
        }
        Ok(())
    }

    fn note_rio_gone(&mut self, is_gone: bool, now: WallTime) {
        if is_gone {
            self.rio_gone.get_or_insert(now);
        }
    }

    /// Who gained custody last, by its own word; rio before anybody did.
    fn holder(&self) -> Who {
        let gained = |s: &&Said| matches!(s.entry.event, Event::CustodyGained { .. });
        let last = self.observer.seen.iter().filter(gained).max_by_key(|s| self.true_time(s.by, s.entry.at));
        if last.is_some_and(|s| s.by == "patras") { Who::Patras } else { Who::Rio }
    }

    async fn kill(&mut self, who: Who) -> anyhow::Result<()> {
        if !self.world.runs(who.name()) {
            return Ok(());
        }
        self.observer.catch_up();
        let killed = self.world.kill(who.name()).await?;
        self.note_death(who, killed);
        Ok(())
    }

    fn note_death(&mut self, who: Who, at: WallTime) {
        self.deaths.push((who, at));
        self.note_rio_gone(who == Who::Rio, at);
        if who == Who::Patras
            && let Some(since) = self.in_memory_since(at)
        {
            self.world.end_life("patras", since);
        }
    }

    /// Since when the standby kept what it heard in memory alone (a standby's buffer dies with its process; what it hears while it serves is
    /// on its disk, what it heard before the takeover once that is replayed).
    fn in_memory_since(&self, now: WallTime) -> Option<WallTime> {
        let mut since = self.rio_gone;
        let mut serves = false;
        for said in self.observer.seen.iter().filter(|s| s.by == "patras") {
            match said.entry.event {
                Event::ReplaySettled { .. } => serves = true,
                Event::CustodyGained { .. } | Event::Started { .. } => serves = false,
                Event::CustodyLost { .. } | Event::Released { .. } => {
                    if serves {
                        since = Some(said.entry.at);
                    }
                    serves = false;
                }
                _ => {}
            }
        }
        let at_most = WallTime(now.0.saturating_sub(OFFER_MS));
        let long_ago = |at: WallTime| WallTime(at.0.saturating_sub(OFFER_MS)).min(at_most);
        if serves { None } else { Some(since.map_or(at_most, long_ago)) }
    }

    async fn start_process(&mut self, who: Who) -> anyhow::Result<()> {
        let name = who.name();
        if self.world.is_ending(name) {
            self.world.end(name).await?;
        }
        if self.world.runs(name) {
            return Ok(());
        }
        match who {
            Who::Arbitrator | Who::Marketplace => self.world.start_service(name).await,
            Who::Rio | Who::Patras | Who::Cloud => {
                self.world.start_node(name).await?;
                self.observer.follow(&self.world, name);
                Ok(())
            }
        }
    }

    fn resume(&mut self, who: Who) {
        let now = self.world.clock.wall();
        if let Some(pause) = self.pauses.iter_mut().rfind(|(paused, _, to)| *paused == who && to.is_none()) {
            pause.2 = Some(now);
        }
        self.world.resume(who.name());
    }

    /// All at one instant: the machine stands still, the disk takes nothing more, the process is gone.
    async fn cut_power(&mut self, who: Who) -> anyhow::Result<()> {
        if !self.world.runs(who.name()) {
            return self.disk(who)?.cut_power();
        }
        self.observer.catch_up();
        self.world.pause(who.name())?;
        self.disk(who)?.cut_power()?;
        let killed = self.world.kill(who.name()).await?;
        self.note_death(who, killed);
        Ok(())
    }

    async fn wait(&mut self, until: Until) -> anyhow::Result<()> {
        match until {
            Until::Says(who, what) => self.wait_says(who.name(), what).await.map(|_| ()),
            Until::Live(who) => self.wait_reading(who, Self::first_live).await,
            Until::ServesAgain(who) => self.wait_reading(who, |stage, _| stage.workload_outage()).await,
        }
    }

    pub async fn wait_says(&mut self, who: &'static str, what: &'static str) -> anyhow::Result<Said> {
        let is_it = move |s: &Said| s.by == who && name_of(&s.entry.event) == what;
        self.observer.wait(&mut self.world, &format!("{who} {what}"), self.mark.0, AWAIT_MAX, is_it).await
    }

    /// Until the cloud has a reading of which `found` knows.
    async fn wait_reading(&mut self, who: Who, found: fn(&Self, Who) -> Option<u64>) -> anyhow::Result<()> {
        let what = format!("a live reading by {} reaches the cloud", who.name());
        poll::until(&what, AWAIT_MAX, LOOK, async || {
            if found(self, who).is_some() {
                return Ok(Some(()));
            }
            self.fetch_rows().await;
            self.observer.catch_up();
            self.world.check_all()?;
            Ok(None)
        })
        .await
    }

    /// What a process said was at this time by its own clock, by the clock of everybody else.
    pub fn true_time(&self, by: &str, at: WallTime) -> WallTime {
        let steps: Vec<_> = self.steps.iter().filter(|(who, _, _)| who.name() == by).collect();
        for (index, (_, from, seconds)) in steps.iter().enumerate().filter(|(_, (_, _, seconds))| *seconds != 0) {
            let shifted = |at: WallTime| WallTime(at.0.saturating_add_signed(seconds * 1_000));
            let to = steps.get(index + 1).map_or(WallTime(u64::MAX / 2), |(_, to, _)| *to);
            if (shifted(*from)..shifted(to)).contains(&at) {
                return WallTime(at.0.saturating_add_signed(-seconds * 1_000));
            }
        }
        at
    }

    /// When `who` gained custody by a vote after the fault began.
    pub fn gained(&self, who: Who) -> Option<WallTime> {
        let since = self.observer.seen.get(self.mark.0..).unwrap_or_default();
        let gained = |s: &&Said| s.by == who.name() && matches!(s.entry.event, Event::CustodyGained { .. });
        // A process that starts anew tells its timeline from its own beginning: nothing in it is older than the fault, or it would be seen.
        since.iter().find(gained).map(|s| self.true_time(s.by, s.entry.at))
    }

    /// Milliseconds from the fault to the cloud's receipt of the first reading that `who` heard after it had gained custody.
    pub fn first_live(&self, who: Who) -> Option<u64> {
        let gained = self.gained(who)?;
        let node = self.world.places[who.name()].node;
        let is_live = |r: &&ReceivedReading| {
            // The cloud's clock is never set off; the edge's may be.
            let is_later = r.received_at > gained && self.true_time(who.name(), r.heard_at) > gained;
            r.delivered_by == node && is_later && r.kind == "live"
        };
        self.rows.iter().filter(is_live).map(|r| r.received_at.since(self.mark.1).0).min()
    }

    /// Milliseconds from the death of the containers to the cloud's receipt of the first reading that their node heard after it.
    pub fn workload_outage(&self) -> Option<u64> {
        let (who, killed) = self.workload_killed?;
        let node = self.world.places[who.name()].node;
        let is_after = |r: &&ReceivedReading| r.delivered_by == node && r.heard_at > killed;
        self.rows.iter().filter(is_after).map(|r| r.received_at.since(killed).0).min()
    }

    /// Takes what is new in the cloud's store; a cloud that does not answer now is asked again.
    pub async fn fetch_rows(&mut self) {
        while let Ok(page) = self.world.readings(self.rows.last().map_or(0, |r| r.seq)).await
            && !page.is_empty()
        {
            self.rows.extend(page);
        }
    }

    /// Everything works again and runs; waits until rio holds, patras is in standby and nobody misses anybody.
    pub async fn recover(&mut self) -> anyhow::Result<()> {
        self.network.heal()?;
        for who in [Who::Marketplace, Who::Arbitrator, Who::Cloud, Who::Patras, Who::Rio] {
            self.resume(who);
            if let Some(disk) = self.disks.get(&who) {
                disk.free()?;
            }
            self.start_process(who).await?;
        }
        let begun = Instant::now();
        loop {
            let state = self.state().await;
            if let Ok(dissent) = state {
                self.dissent = dissent;
                break;
            }
            self.world.check_all()?;
            if begun.elapsed() > RECOVERY_MAX {
                return state.map(|_| ()).context("not recovered");
            }
            tokio::time::sleep(LOOK).await;
        }
        let now = self.world.clock.wall();
        for who in ["rio", "patras"] {
            self.world.begin_life(who, now);
        }
        self.observer.catch_up();
        self.rio_gone = None;
        self.told_to_end = None;
        Ok(())
    }

    /// `Err` says what is missing to the steady state; `Ok(true)` if patras voted for itself in rio's epoch.
    async fn state(&self) -> anyhow::Result<bool> {
        let [rio, patras] = ["rio", "patras"].map(|name| self.world.places[name].node);
        let (mut epochs, mut dissent) = (Vec::new(), false);
        for (name, role) in [("rio", "holder"), ("patras", "follower")] {
            let status = self.world.status(name).await?;
            // More than one if a contract ended (a provider that was stopped too long breaches it) and the next is in force.
            anyhow::ensure!(!status.groups.is_empty(), "{name} takes part in no custody");
            for group in &status.groups {
                let stands_by = group.holder == Some(rio) || (name == "patras" && group.holder == Some(patras));
                dissent |= group.holder != Some(rio);
                let is_right = group.role == role && stands_by && group.missing.is_empty();
                anyhow::ensure!(is_right, "{name}: {group:?}");
                epochs.push(group.epoch);
            }
        }
        anyhow::ensure!(epochs.windows(2).all(|pair| pair[0] == pair[1]), "epochs {epochs:?}");
        self.world.readings(u64::from(u32::MAX)).await.map(|_| dissent)
    }

    /// After a time of peace that lets bridges exchange what is open.
    pub async fn rest(&self, time: Millis) {
        tokio::time::sleep(time.to_duration()).await;
    }
}

/// Whether the standby may miss what the insured node serves, or cannot offer it anything.
fn touches_the_edges(cut: Cut) -> bool {
    let is_edge = |who: Who| matches!(who, Who::Rio | Who::Patras);
    match cut {
        Cut::Link(who) | Cut::Deaf(who) | Cut::Mute(who) => is_edge(who),
        Cut::Pair(one, other) => is_edge(one) && is_edge(other),
        Cut::Loss { .. } => true,
    }
}
