//! Runs motes, radio and gateways in real time and keeps their ledgers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep_until, timeout};

use crate::airtime::SpreadingFactor;
use crate::fleet::{Eui64, Fleet};
use crate::gateway::{self, Clock, Gateway};
use crate::ledger::{self, GatewayRecord, Ledger, MoteRecord, RadioRecord, Start, Writer};
use crate::mote::{Depth, Policy};
use crate::radio::{self, GATEWAYS_MAX, Loss, Output, Radio, Transmission};
use crate::seed::PPM;

/// Highest total rate: 100,000 uplinks per second.
const RATE_MILLI_MAX: u64 = 100_000_000;
/// Downlinks that may wait between gateways and radio.
const TRANSMISSIONS_WAITING_MAX: usize = 1_024;
/// Commands that may wait.
const COMMANDS_WAITING_MAX: usize = 16;
/// When nothing is planned at all.
const IDLE_US: u64 = 1_000_000;

/// Why a world could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value outside its limits.
    #[error("{0}")]
    Config(String),
    /// The fleet's size is outside its limits.
    #[error("fleet")]
    Fleet(#[from] crate::fleet::FleetSize),
    /// A gateway could not start or stopped.
    #[error("gateway")]
    Gateway(#[from] gateway::Error),
    /// A ledger could not be written.
    #[error("ledger")]
    Ledger(#[from] ledger::Error),
    /// No gateway has this identifier.
    #[error("no gateway {0}")]
    UnknownGateway(Eui64),
    /// The world has stopped already.
    #[error("the world has stopped")]
    Stopped,
}

/// What a run is made of. The default is the load: 200 motes, 20 uplinks/s, 5 % confirmed, 5 % loss on each link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldConfig {
    /// Decides everything that chance would.
    pub seed: u64,
    /// Number of motes, 1 to 65,536.
    pub motes: u32,
    /// Uplinks per 1,000 seconds of all motes together; 20,000 is 20 per second.
    pub rate_milli: u64,
    /// Confirmed uplinks, parts per million.
    pub confirmed_ppm: u32,
    /// Loss from each mote to each gateway, parts per million.
    pub uplink_loss_ppm: u32,
    /// Loss from each gateway to each mote, parts per million.
    pub downlink_loss_ppm: u32,
    /// Data rate of the second window.
    pub rx2_data_rate: SpreadingFactor,
    /// Whether motes keep the 1 % duty cycle.
    pub duty_cycle: bool,
    /// Motes that join over the air, parts per million.
    pub otaa_ppm: u32,
    /// What motes do beside sending readings.
    pub depth: Depth,
    /// Where the ledgers are written; existing ones are replaced.
    pub ledger_directory: PathBuf,
}

impl WorldConfig {
    /// The default load with this seed and ledger directory.
    #[must_use]
    pub fn new(seed: u64, ledger_directory: PathBuf) -> Self {
        Self {
            seed,
            motes: 200,
            rate_milli: 20_000,
            confirmed_ppm: 50_000,
            uplink_loss_ppm: 50_000,
            downlink_loss_ppm: 50_000,
            rx2_data_rate: SpreadingFactor::SF12,
            duty_cycle: true,
            otaa_ppm: 0,
            depth: Depth::default(),
            ledger_directory,
        }
    }

    fn check(&self, gateways: usize) -> Result<(), Error> {
        let shares = [self.confirmed_ppm, self.uplink_loss_ppm, self.downlink_loss_ppm, self.otaa_ppm, self.depth.requests_ppm];
        if shares.iter().any(|share| *share > PPM) {
            return Err(Error::Config("a share is at most 1".to_owned()));
        }
        if self.rate_milli == 0 || self.rate_milli > RATE_MILLI_MAX {
            return Err(Error::Config(format!("the rate is between 0.001 and {} uplinks/s", RATE_MILLI_MAX / 1_000)));
        }
        if gateways == 0 || gateways > GATEWAYS_MAX {
            return Err(Error::Config(format!("a world has 1 to {GATEWAYS_MAX} gateways")));
        }
        Ok(())
    }
}

/// A gateway and where it sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Identifier, unique in the world.
    pub eui: Eui64,
    /// UDP address of its node.
    pub server: SocketAddr,
}

/// Live state of a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Wall clock of this state, microseconds.
    pub at_us: u64,
    /// No new readings, nothing on air, no confirmed uplink pending.
    pub drained: bool,
    /// Receptions handed to gateways.
    pub receptions: u64,
    /// Totals of the radio.
    #[serde(flatten)]
    pub counts: radio::Counts,
}

/// How draining ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Drained {
    /// Whether it ended before its bound.
    pub complete: bool,
    /// Confirmed uplinks that still wait for an answer.
    pub confirmed_pending: u64,
}

#[derive(Debug)]
enum Command {
    StopSending,
    SetServer(usize, Option<SocketAddr>),
    Quit,
}

/// A running world.
#[derive(Debug)]
pub struct World {
    fleet: Fleet,
    euis: Vec<Eui64>,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    gateway_counts: Vec<Arc<Mutex<gateway::Counts>>>,
    task: JoinHandle<Result<(), Error>>,
    writer: Option<Writer>,
}

/// What a world stands on.
#[derive(Clone, Debug)]
pub struct Ground<S> {
    /// Where gateways get their sockets from.
    pub sockets: S,
    /// Where everything is written down.
    pub ledger: Ledger,
    /// Wall clock at the start, microseconds since 1970.
    pub wall_us: u64,
}

impl World {
    /// Starts motes, radio and gateways; readings fall due from now on.
    ///
    /// # Errors
    /// [`Error`] if a value is outside its limits, a ledger or a socket cannot be opened.
    pub async fn start(config: WorldConfig, gateways: &[GatewayConfig]) -> Result<Self, Error> {
        config.check(gateways.len())?;
        let (ledger, writer) = ledger::create(&config.ledger_directory)?;
        let mut world = Self::start_on(Ground { sockets: gateway::Udp, ledger, wall_us: wall_us() }, config, gateways).await?;
        world.writer = Some(writer);
        Ok(world)
    }

    /// As [`Self::start`], on other ground than this machine's; the ledger directory of `config` is not used.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_on(
        ground: Ground<impl gateway::Sockets>,
        config: WorldConfig,
        gateways: &[GatewayConfig],
    ) -> Result<Self, Error> {
        config.check(gateways.len())?;
        let Ground { sockets, ledger, wall_us } = ground;
        let fleet = Fleet::with_otaa(config.seed, config.motes, config.otaa_ppm)?;
        let euis: Vec<Eui64> = gateways.iter().map(|gateway| gateway.eui).collect();
        if euis.iter().enumerate().any(|(index, eui)| euis[..index].contains(eui)) {
            return Err(Error::Config("two gateways have one identifier".to_owned()));
        }
        let clock = Clock::new(wall_us);
        let start_us = clock.now_us();
        record_start(&ledger, &config, &euis, start_us)?;
        let (transmit, transmissions) = mpsc::channel(TRANSMISSIONS_WAITING_MAX);
        let mut running = Vec::with_capacity(gateways.len());
        for (index, gateway) in gateways.iter().enumerate() {
            let config = gateway::Config { index, eui: gateway.eui, server: gateway.server, seed: fleet.seed(), clock };
            running.push(Gateway::start(config, &sockets, transmit.clone(), ledger.clone()).await?);
        }
        let loss = Loss { uplink_ppm: config.uplink_loss_ppm, downlink_ppm: config.downlink_loss_ppm };
        let policy = Policy {
            seed: fleet.seed(),
            period_us: (u64::from(config.motes) * 1_000_000_000 / config.rate_milli).max(1),
            confirmed_ppm: config.confirmed_ppm,
            rx2_data_rate: config.rx2_data_rate,
            duty_cycle: config.duty_cycle,
            depth: config.depth,
        };
        let radio = Radio::new(&fleet, policy, loss, euis.clone(), start_us);
        let (commands, command_queue) = mpsc::channel(COMMANDS_WAITING_MAX);
        let (publish, status) = watch::channel(Status::default());
        let gateway_counts = running.iter().map(Gateway::shared_counts).collect();
        let driver = Driver { clock, radio, gateways: running, ledger, publish, receptions: 0 };
        let task = tokio::spawn(driver.run(command_queue, transmissions));
        Ok(Self { fleet, euis, commands, status, gateway_counts, task, writer: None })
    }

    /// The motes.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Live totals.
    #[must_use]
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Live totals of each gateway, in the order of the start.
    #[must_use]
    pub fn gateway_counts(&self) -> Vec<(Eui64, gateway::Counts)> {
        let read = |counts: &Arc<Mutex<gateway::Counts>>| *counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.euis.iter().copied().zip(self.gateway_counts.iter().map(read)).collect()
    }

    /// Waits until `condition` holds; false if `bound` passes before.
    pub async fn wait_for(&self, bound: Duration, condition: impl FnMut(&Status) -> bool) -> bool {
        let mut status = self.status.clone();
        matches!(timeout(bound, status.wait_for(condition)).await, Ok(Ok(_)))
    }

    /// No new readings; confirmed uplinks under way are still repeated.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn stop_sending(&self) -> Result<(), Error> {
        self.command(Command::StopSending).await
    }

    /// Stops sending and waits until no confirmed uplink is pending and every gateway has passed on what it heard, or until `bound`.
    /// Eight attempts down to SF10 within the duty cycle can take three minutes.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn drain(&self, bound: Duration) -> Result<Drained, Error> {
        self.stop_sending().await?;
        let passed_on = async {
            let mut tick = interval(Duration::from_millis(5));
            loop {
                tick.tick().await;
                let done: u64 =
                    self.gateway_counts().iter().map(|(_, counts)| counts.uplinks_pushed + counts.uplinks_blocked).sum();
                let status = self.status();
                if status.drained && done == status.receptions {
                    break;
                }
                if self.task.is_finished() {
                    return Err(Error::Stopped);
                }
            }
            Ok(())
        };
        let complete = match timeout(bound, passed_on).await {
            Ok(result) => result.map(|()| true)?,
            Err(_) => false,
        };
        Ok(Drained { complete, confirmed_pending: self.status().counts.confirmed_pending })
    }

    /// False once the world has stopped by itself; [`Self::shutdown`] tells why.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Gives a gateway another server, or cuts it off.
    ///
    /// # Errors
    /// [`Error::UnknownGateway`], [`Error::Stopped`].
    pub async fn set_server(&self, gateway: Eui64, server: Option<SocketAddr>) -> Result<(), Error> {
        let index = self.euis.iter().position(|eui| *eui == gateway).ok_or(Error::UnknownGateway(gateway))?;
        self.command(Command::SetServer(index, server)).await
    }

    /// Stops everything and closes the ledgers.
    ///
    /// # Errors
    /// Whatever went wrong while the world was running.
    pub async fn shutdown(self) -> Result<Status, Error> {
        // A closed queue means that the world stopped by itself; the reason comes from its task.
        let _ = self.commands.send(Command::Quit).await;
        match self.task.await {
            Ok(result) => result?,
            Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Err(_) => return Err(Error::Stopped),
        }
        if let Some(writer) = self.writer {
            tokio::task::spawn_blocking(move || writer.finish()).await.map_err(|_| Error::Stopped)??;
        }
        let status = *self.status.borrow();
        Ok(status)
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Stopped)
    }
}

#[expect(clippy::disallowed_methods, reason = "the judge has a clock of its own, in microseconds, read once per run")]
pub(crate) fn wall_us() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX / 2)
}

fn record_start(ledger: &Ledger, config: &WorldConfig, gateways: &[Eui64], at_us: u64) -> Result<(), ledger::Error> {
    let start = Start {
        seed: config.seed,
        motes: config.motes,
        rate_milli: config.rate_milli,
        confirmed_ppm: config.confirmed_ppm,
        uplink_loss_ppm: config.uplink_loss_ppm,
        downlink_loss_ppm: config.downlink_loss_ppm,
        gateways: gateways.to_vec(),
        at_us,
    };
    ledger.record_mote(&MoteRecord::Start(start.clone()))?;
    ledger.record_radio(&RadioRecord::Start(start.clone()))?;
    ledger.record_gateway(&GatewayRecord::Start(start))
}

struct Driver {
    clock: Clock,
    radio: Radio,
    gateways: Vec<Gateway>,
    ledger: Ledger,
    publish: watch::Sender<Status>,
    receptions: u64,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut transmissions: mpsc::Receiver<Transmission>,
    ) -> Result<(), Error> {
        loop {
            let now_us = self.clock.now_us();
            let outputs = self.radio.advance(now_us);
            if !self.carry_out(outputs).await? {
                break;
            }
            let (drained, receptions, counts) = (self.radio.is_drained(), self.receptions, self.radio.counts());
            self.publish.send_replace(Status { at_us: now_us, drained, receptions, counts });
            let wake_us = self.radio.next_us().unwrap_or(now_us + IDLE_US);
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::StopSending) => self.radio.stop_sending(),
                    Some(Command::SetServer(index, server)) => {
                        if let Some(gateway) = self.gateways.get(index) {
                            gateway.set_server(server);
                        }
                    }
                    Some(Command::Quit) | None => break,
                },
                Some(transmission) = transmissions.recv() => self.radio.transmit(transmission),
                () = sleep_until(self.clock.instant_at(wake_us)) => {}
            }
        }
        // Gateways that wait with a downlink must not wait for us.
        drop(transmissions);
        for gateway in self.gateways {
            gateway.stop().await?;
        }
        Ok(())
    }

    /// False if a gateway has stopped.
    async fn carry_out(&mut self, outputs: Vec<Output>) -> Result<bool, Error> {
        for output in outputs {
            match output {
                Output::Hear { gateway, reception } => {
                    self.receptions += 1;
                    let Some(gateway) = self.gateways.get(gateway) else { continue };
                    if !gateway.hear(reception).await {
                        return Ok(false);
                    }
                }
                Output::Mote(record) => self.ledger.record_mote(&record)?,
                Output::Radio(record) => self.ledger.record_radio(&record)?,
            }
        }
        Ok(true)
    }
}
