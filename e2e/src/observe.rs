//! What the nodes say of themselves while they run: their event streams, merged; the cloud's readings; accounts.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use contracts::ids::{Epoch, NodeId, OwnerId};
use contracts::time::WallTime;
use edge_node::api::{ReceivedReading, Status};
use edge_node::timeline::{Entry, Event};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::poll;
use crate::world::World;

/// An event with the name of the node that said it.
#[derive(Debug, Clone)]
pub struct Said {
    pub by: &'static str,
    pub entry: Entry,
}

/// All events of all nodes so far, and those to come.
#[derive(Debug)]
pub struct Observer {
    sender: mpsc::UnboundedSender<Said>,
    receiver: mpsc::UnboundedReceiver<Said>,
    pub seen: Vec<Said>,
    followers: BTreeMap<&'static str, JoinHandle<()>>,
    begun: WallTime,
    quiet: bool,
}

impl Observer {
    pub fn new(begun: WallTime, quiet: bool) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver, seen: Vec::new(), followers: BTreeMap::new(), begun, quiet }
    }

    /// Follows a node's events from the first on; a former follower of the same name ends.
    pub fn follow(&mut self, world: &World, name: &'static str) {
        let url = format!("http://{}/v1/events", world.places[name].api);
        let sender = self.sender.clone();
        let Ok(client) = reqwest::Client::builder().tls_certs_only([]).build() else { return };
        let task = tokio::spawn(async move {
            // Ends with the node; a restarted node is followed anew.
            if let Ok(answer) = client.get(&url).send().await {
                let mut body = answer.bytes_stream();
                let mut text = Vec::new();
                while let Some(Ok(chunk)) = body.next().await {
                    text.extend_from_slice(&chunk);
                    while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = text.drain(..=end).collect();
                        let entry = line.strip_prefix(b"data:").and_then(|data| serde_json::from_slice(data).ok());
                        if let Some(entry) = entry
                            && sender.send(Said { by: name, entry }).is_err()
                        {
                            return;
                        }
                    }
                }
            }
        });
        if let Some(former) = self.followers.insert(name, task) {
            former.abort();
        }
    }

    /// A line of the run's own doing.
    pub fn say(&self, at: WallTime, text: &str) {
        if !self.quiet {
            println!("{:>9.3} s  {:<12} {text}", seconds(at.since(self.begun).0), "demo");
        }
    }

    fn print(&self, said: &Said) {
        if !self.quiet {
            println!("{:>9.3} s  {:<12} {}", seconds(said.entry.at.since(self.begun).0), said.by, describe(&said.entry.event));
        }
    }

    /// Waits until a node says something that `is_it`, counting what it said since `from` (an index into [`Self::seen`]).
    pub async fn wait(
        &mut self,
        world: &mut World,
        what: &str,
        from: usize,
        bound: Duration,
        is_it: impl Fn(&Said) -> bool,
    ) -> anyhow::Result<Said> {
        let begun = std::time::Instant::now();
        let mut looked = from;
        loop {
            while let Ok(said) = self.receiver.try_recv() {
                self.print(&said);
                self.seen.push(said);
            }
            if let Some(said) = self.seen[looked.min(self.seen.len())..].iter().find(|s| is_it(s)) {
                return Ok(said.clone());
            }
            looked = self.seen.len();
            world.check_all()?;
            anyhow::ensure!(begun.elapsed() < bound, "{what} did not happen within {} s", bound.as_secs());
            match tokio::time::timeout(Duration::from_millis(200), self.receiver.recv()).await {
                Ok(Some(said)) => {
                    self.print(&said);
                    self.seen.push(said);
                }
                Ok(None) => anyhow::bail!("nobody says anything any more"),
                Err(_) => {}
            }
        }
    }

    /// Takes what was said meanwhile.
    pub fn catch_up(&mut self) {
        while let Ok(said) = self.receiver.try_recv() {
            self.print(&said);
            self.seen.push(said);
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.followers.values().for_each(JoinHandle::abort);
    }
}

fn seconds(ms: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let seconds = ms as f64 / 1_000.0;
    seconds
}

/// An event in one line for people.
fn describe(event: &Event) -> String {
    match event {
        Event::Started { node, engine } => format!("{node} is up (containers: {engine})"),
        Event::ServiceStarted { start_us, .. } => format!("own service runs, connected after {:.1} ms", micros(*start_us)),
        Event::TenantConnected { .. } => "tenant connected".to_owned(),
        Event::Listed { kind, id } => format!("listed a signed {kind}: {}", id.short()),
        Event::Matched { id } => format!("matched: {}", id.short()),
        Event::Negotiated { round, price_per_day_micros } => {
            format!("agreed in round {round}: {price_per_day_micros} micro-EUR per day")
        }
        Event::Signed { contract } => format!("signed contract {}", contract.short()),
        Event::InForce { contract } => format!("contract {} is in force, stakes are held", contract.short()),
        Event::ContentStored { cid, bytes } => format!("stored {bytes} bytes as {cid}"),
        Event::ContentFetched { cid, bytes, elapsed_ms } => {
            format!("fetched and verified {bytes} bytes in {elapsed_ms} ms: {cid}")
        }
        Event::Prepared { create_ms, .. } => format!("containers created and waiting ({create_ms} ms)"),
        Event::Armed { .. } => "takes part in custody".to_owned(),
        Event::CustodyGained { epoch, certificate, .. } => {
            format!("CUSTODY of epoch {epoch}, certificate {}", certificate.map_or_else(|| "-".to_owned(), |c| c.short()))
        }
        Event::CustodyLost { epoch, .. } => format!("custody of epoch {epoch} is over here"),
        Event::TakenOver { epoch, start_us, .. } => {
            format!("TAKEN OVER in epoch {epoch}: containers answered after {:.1} ms", micros(*start_us))
        }
        Event::ReplaySettled { frames, elapsed_ms, .. } => {
            format!("{frames} buffered frames replayed, all with the cloud after {elapsed_ms} ms")
        }
        Event::CustomerReturned { .. } => "the customer is back".to_owned(),
        Event::Level { imported, .. } => format!("level with the insurer ({imported} open readings taken over)"),
        Event::Released { epoch, .. } => format!("released epoch {epoch} with exact counters"),
        Event::HandedBack { epoch, .. } => format!("HANDED BACK in epoch {epoch}"),
        Event::Settled { contract, outcome, verdict } => {
            format!(
                "contract {} ended: {outcome}, verdict {}",
                contract.short(),
                verdict.map_or_else(|| "-".to_owned(), |v| v.short())
            )
        }
        Event::Wiped { contract } => format!("keys and content of {} wiped", contract.short()),
        Event::Alarm { what } => format!("ALARM {what}"),
    }
}

fn micros(us: u64) -> f64 {
    seconds(us)
}

impl World {
    async fn get<T: serde::de::DeserializeOwned>(&self, name: &str, path: &str) -> anyhow::Result<T> {
        let url = format!("http://{}{path}", self.places[name].api);
        let answer = self.http.get(&url).send().await.with_context(|| url.clone())?.error_for_status()?;
        Ok(answer.json().await?)
    }

    pub async fn status(&self, name: &str) -> anyhow::Result<Status> {
        self.get(name, "/v1/status").await
    }

    /// What the bridge of a node counts, as its API says it.
    pub async fn bridge_stats(&self, name: &str) -> anyhow::Result<serde_json::Value> {
        self.get(name, "/v1/bridge").await
    }

    /// What a node has of the fleet's keys, or could open to get them: on disk, and as sessions of its bridge.
    pub async fn foreign_keys_left(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let list: serde_json::Value = serde_json::from_slice(&std::fs::read(self.directory.join("provisioning.json"))?)?;
        let mut found = crate::wiped::Keys::of(&list)?.find_below(&self.directory.join(name))?;
        let bridge = self.bridge_stats(name).await?;
        for what in ["sessions", "buffer_frames"] {
            let left = bridge[what].as_u64().with_context(|| format!("{name} does not count {what}: {bridge}"))?;
            found.extend((left > 0).then(|| format!("{left} {what} in the bridge of {name}")));
        }
        Ok(found)
    }

    /// Waits until a node has accepted a join over the air; how many it has. None if no sensor joins.
    pub async fn wait_joins(&mut self, name: &str, bound: Duration) -> anyhow::Result<u64> {
        poll::until(&format!("{name} accepts a join"), bound, Duration::from_millis(50), async || {
            let bridge = self.bridge_stats(name).await?;
            let accepted = bridge["joins_accepted"].as_u64().with_context(|| format!("{name} does not count joins: {bridge}"))?;
            self.check_all()?;
            let is_enough = accepted > 0 || self.settings.otaa == "0" || self.settings.rejoin == 0;
            Ok(is_enough.then_some(accepted))
        })
        .await
    }

    /// Readings in the cloud's store behind the cursor.
    pub async fn readings(&self, after: u64) -> anyhow::Result<Vec<ReceivedReading>> {
        self.get("cloud", &format!("/v1/readings?after={after}")).await
    }

    pub async fn all_readings(&self) -> anyhow::Result<Vec<ReceivedReading>> {
        let mut all: Vec<ReceivedReading> = Vec::new();
        loop {
            let page = self.readings(all.last().map_or(0, |r| r.seq)).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// Available and reserved micro-units of each owner, and their sum.
    pub async fn accounts(&self) -> anyhow::Result<BTreeMap<OwnerId, (u64, u64)>> {
        let client = arbitrator::Client::new(&format!("http://{}", self.places["arbitrator"].api))?;
        let mut accounts = BTreeMap::new();
        for owner in self.owners {
            for account in client.list_accounts(owner).await? {
                accounts.insert(owner, (account.available.micros(), account.reserved.micros()));
            }
        }
        Ok(accounts)
    }

    /// Waits until the cloud got a reading for which `is_it`, looking behind `after`; returns it and the cursor.
    pub async fn wait_reading(
        &mut self,
        what: &str,
        mut after: u64,
        bound: Duration,
        is_it: impl Fn(&ReceivedReading) -> bool,
    ) -> anyhow::Result<(ReceivedReading, u64)> {
        poll::until(&format!("{what} reaches the cloud"), bound, Duration::from_millis(20), async || {
            for reading in self.readings(after).await? {
                after = reading.seq;
                if is_it(&reading) {
                    return Ok(Some((reading, after)));
                }
            }
            self.check_all()?;
            Ok(None)
        })
        .await
    }

    /// Waits until every node agrees on who holds custody.
    pub async fn wait_holder(&mut self, holder: &'static str, bound: Duration) -> anyhow::Result<Epoch> {
        let begun = std::time::Instant::now();
        let wanted: NodeId = self.places[holder].node;
        loop {
            let mut epochs = Vec::new();
            for name in ["rio", "patras"] {
                for group in self.status(name).await?.groups {
                    epochs.push((group.holder, group.epoch, group.role));
                }
            }
            if epochs.len() == 2
                && epochs.iter().all(|(h, e, _)| *h == Some(wanted) && *e == epochs[0].1)
                && epochs.iter().any(|(_, _, role)| role == "holder")
            {
                return Ok(epochs[0].1);
            }
            self.check_all()?;
            anyhow::ensure!(begun.elapsed() < bound, "{holder} does not hold custody after {} s: {epochs:?}", bound.as_secs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
