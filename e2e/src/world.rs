//! Two owners, their nodes, a marketplace, an arbitrator, a cloud and a radio: configuration files and processes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use contracts::ids::{NodeId, OwnerId};
use contracts::time::WallTime;
use edge_node::identity::{KEY_FILE, load_or_create_key};
use kit::clock::Clock;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;

use crate::address::{Addresses, PROCESSES};
use crate::process::{self, Process, Start};
use crate::{containers, poll};

/// EUIs of the two gateways.
pub const RIO_GATEWAY: &str = "aa555a0000000101";
pub const PATRAS_GATEWAY: &str = "aa555a0000000102";
/// How long a process may take to answer after it was started.
const START_MAX: Duration = Duration::from_secs(20);
/// Money that each owner pays in.
const DEPOSIT_UNITS: u32 = 1_000;
/// What the containers of both edges run.
pub const SERVICE_PROGRAM: &str = "lora-device-service";

/// What a run is to be like.
#[derive(Debug, Clone)]
pub struct Settings {
    pub programs: PathBuf,
    pub image: PathBuf,
    pub engine: String,
    pub docker_socket: Option<PathBuf>,
    pub motes: u32,
    pub rate: String,
    pub confirmed: String,
    pub loss: String,
    /// Share of motes that join over the air, and after how many seconds they join anew.
    pub otaa: String,
    pub rejoin: u32,
    pub seed: u64,
    pub ttl_ms: u64,
    pub quiet_ms: u64,
    /// Takeovers after which the contract is settled.
    pub activations: u32,
    /// Gateways and whose they are.
    pub gateways: Vec<(&'static str, &'static str)>,
    /// Further flags of the radio; they count instead of those above.
    pub radio: Vec<String>,
    /// Spreading factor of the second window, 7 to 12.
    pub rx2_sf: u8,
}

/// Key and addresses of one process.
#[derive(Debug, Clone)]
pub struct Place {
    pub node: NodeId,
    /// HTTP, as this program reaches it.
    pub api: SocketAddr,
    pub addresses: Addresses,
}

/// Everything that runs.
#[derive(Debug)]
pub struct World {
    pub settings: Settings,
    pub directory: PathBuf,
    pub owners: [OwnerId; 2],
    pub places: BTreeMap<&'static str, Place>,
    /// The network namespace of the radio, if it has one.
    radio_namespace: Option<String>,
    /// Below it one file per process that shifts its wall clock (read by libfaketime, which is preloaded then).
    pub wall_clocks: Option<WallClocks>,
    pub http: reqwest::Client,
    pub clock: Clock,
    processes: BTreeMap<&'static str, Process>,
    /// Told to end, and not waited for yet.
    ending: BTreeMap<&'static str, Process>,
    radio_input: Option<ChildStdin>,
    pub ledgers: PathBuf,
    /// When each node's UDP port was open: from, to.
    pub lives: BTreeMap<&'static str, Vec<(WallTime, Option<WallTime>)>>,
}

/// A library that shifts the wall clock of a process, and the directory of the files that say by how much.
#[derive(Debug, Clone)]
pub struct WallClocks {
    pub faketime: PathBuf,
    pub directory: PathBuf,
}

impl World {
    /// Makes keys below `directory`; starts nothing.
    pub fn prepare(
        settings: Settings,
        directory: &Path,
        addresses: BTreeMap<&'static str, Addresses>,
        radio_namespace: Option<String>,
    ) -> anyhow::Result<Self> {
        let key = |path: &str| load_or_create_key(&directory.join(path)).map_err(anyhow::Error::from);
        let owners = [key("owner1.key")?.owner_id(), key("owner2.key")?.owner_id()];
        let mut places = BTreeMap::new();
        for (name, addresses) in addresses {
            let is_service = matches!(name, "arbitrator" | "marketplace");
            let path = if is_service { format!("{name}.key") } else { format!("{name}/{KEY_FILE}") };
            places.insert(name, Place { node: key(&path)?.node_id(), api: addresses.api, addresses });
        }
        anyhow::ensure!(PROCESSES.iter().all(|(name, _)| places.contains_key(name)), "every process has addresses");
        Ok(Self {
            ledgers: directory.join("ledgers"),
            directory: directory.to_owned(),
            settings,
            owners,
            places,
            radio_namespace,
            wall_clocks: None,
            http: reqwest::Client::builder().tls_certs_only([]).timeout(Duration::from_secs(10)).build()?,
            clock: Clock::system(),
            processes: BTreeMap::new(),
            ending: BTreeMap::new(),
            radio_input: None,
            lives: BTreeMap::new(),
        })
    }

    fn program(&self, name: &str) -> PathBuf {
        self.settings.programs.join(name)
    }

    fn place(&self, name: &str) -> &Place {
        &self.places[name]
    }

    fn write(&self, name: &str, content: &str) -> anyhow::Result<String> {
        let path = self.directory.join(name);
        std::fs::write(&path, content).with_context(|| path.display().to_string())?;
        Ok(path.display().to_string())
    }

    fn run_antirio(&mut self, name: &'static str, command: &str, config: &str) -> anyhow::Result<()> {
        let config = self.write(&format!("{name}.toml"), config)?;
        let log = std::env::var("ANTIRIO_LOG").unwrap_or_else(|_| "info".to_owned());
        let arguments = [command.to_owned(), "--config".to_owned(), config, "--log".to_owned(), log];
        let program = self.program("antirio");
        let mut start = Start::new(name, &program, &arguments, &self.directory);
        start.namespace = self.place(name).addresses.namespace.as_deref();
        if let Some(clocks) = &self.wall_clocks {
            start.wall_clock = Some((&clocks.faketime, clocks.directory.join(name)));
        }
        let process = start.run()?;
        self.processes.insert(name, process);
        Ok(())
    }

    /// Starts the marketplace or the arbitrator and waits until it answers.
    pub async fn start_service(&mut self, name: &'static str) -> anyhow::Result<()> {
        let directory = self.directory.display().to_string();
        // Of its own, as a node's: it may be another disk.
        std::fs::create_dir_all(self.directory.join(name))?;
        let bind = self.place(name).addresses.api_bind;
        let mut config = format!(
            "bind = \"{bind}\"\nstore = {{ sqlite = \"{directory}/{name}/{name}.sqlite\" }}\nsecret_key = {{ file = \"{directory}/{name}.key\" }}\n"
        );
        if name == "arbitrator" {
            let operator = load_or_create_key(&self.directory.join("operator.key"))?.key();
            let peering = self.place(name).addresses.peering;
            config += &format!("peering_bind = \"{peering}\"\noperators = [\"{operator}\"]\ntick_ms = 100\n");
        } else {
            config += "round_ms = 200\n";
        }
        self.run_antirio(name, name, &config)?;
        self.wait_healthy(name).await
    }

    /// Marketplace and arbitrator, and money in both owners' accounts.
    pub async fn start_center(&mut self) -> anyhow::Result<()> {
        load_or_create_key(&self.directory.join("operator.key"))?;
        self.start_service("marketplace").await?;
        self.start_service("arbitrator").await?;
        let directory = self.directory.display().to_string();
        for owner in self.owners {
            let arguments = [
                "credit".to_owned(),
                format!("--arbitrator=http://{}", self.place("arbitrator").api),
                format!("--operator-key={directory}/operator.key"),
                format!("--owner={owner}"),
                format!("--amount={DEPOSIT_UNITS}"),
                "--log=warn".to_owned(),
            ];
            let output = tokio::process::Command::new(self.program("antirio")).args(arguments).output().await?;
            anyhow::ensure!(output.status.success(), "credit failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Starts a node and waits until its ports are open.
    pub async fn start_node(&mut self, name: &'static str) -> anyhow::Result<()> {
        let config = match name {
            "cloud" => self.node_config(name, "cloud", 0)?,
            "rio" => self.rio_config()?,
            _ => self.patras_config()?,
        };
        self.run_antirio(name, "node", &config)?;
        self.wait_healthy(name).await?;
        self.begin_life(name, self.clock.wall());
        Ok(())
    }

    fn node_config(&self, name: &str, role: &str, owner: usize) -> anyhow::Result<String> {
        let (directory, place) = (self.directory.display(), self.place(name));
        let addresses = &place.addresses;
        let mut text = format!(
            "name = \"{name}\"\nrole = \"{role}\"\nstate_directory = \"{directory}/{name}\"\nowner_key_file = \"{directory}/owner{}.key\"\n",
            owner + 1
        );
        if name != "cloud" {
            text += &format!("cloud = \"{}\"\npolicy_file = \"{directory}/{name}.policy.toml\"\n", self.place("cloud").node);
            let (latitude, longitude) = if name == "rio" { (383_100_000, 217_800_000) } else { (383_300_000, 217_670_000) };
            text += &format!("position = {{ latitude_e7 = {latitude}, longitude_e7 = {longitude} }}\n");
        }
        text += &format!("[peering]\nbind = \"{}\"\n[api]\nbind = \"{}\"\n", addresses.peering, addresses.api_bind);
        text += &format!("[marketplace]\nurl = \"http://{}\"\n", self.place("marketplace").addresses.api_public);
        let arbitrator = self.place("arbitrator");
        text += &format!("[arbitrator]\nnode = \"{}\"\nurl = \"http://{}\"\n", arbitrator.node, arbitrator.addresses.api_public);
        if let Some(lora) = addresses.lora_bind {
            text += &format!("[lora]\nbind = \"{lora}\"\n[engine]\nkind = \"{}\"\n", self.settings.engine);
            if let Some(socket) = &self.settings.docker_socket {
                text += &format!("docker_socket = \"{}\"\n", socket.display());
            }
        }
        Ok(text)
    }

    fn policy_head(&self) -> String {
        let arbitrator = self.place("arbitrator").node;
        format!("currency = \"EUR\"\nwitnesses = [\"{arbitrator}\"]\narbitrator = \"{arbitrator}\"\nconcession = \"linear\"\n")
    }

    fn rio_config(&self) -> anyhow::Result<String> {
        let settings = &self.settings;
        let policy = self.policy_head()
            + &format!(
                "[customer]\nbid_per_day = \"4000000\"\nbid_per_day_max = \"8000000\"\nserved_hour_cost_max = \"1000000\"\nincluded_hours = 24\nserved_hours_max = 10\n\
                 stake_max = \"500000000\"\nprovider_stake_min = \"10000000\"\nreputation_min_permille = 0\ndays = 1\nmargin_permille = 500\n\
                 [customer.terms]\nttl = {}\ndeadline = {}\nhandback_quiet = {}\nhandback_deadline = 60000\ngrace = 2000\ncounter_block = 16\n\
                 buffer_frames_max = 65536\nbuffer_bytes_max = 33554432\nbuffer_hours_max = 24\nmirror = false\nactivations_max = {}\n",
                settings.ttl_ms,
                settings.ttl_ms * 2,
                settings.quiet_ms,
                settings.activations
            );
        self.write("rio.policy.toml", &policy)?;
        let directory = self.directory.display();
        let service = format!(
            "[service]\nname = \"lora\"\nimage = \"{}\"\nconfiguration = \"{directory}/devices.json\"\n",
            settings.image.display()
        );
        Ok(self.node_config("rio", "edge", 0)? + &service)
    }

    fn patras_config(&self) -> anyhow::Result<String> {
        let settings = &self.settings;
        let policy = self.policy_head()
            + &format!(
                "[provider]\nreserve_permille = 100\nradio_range_m = 15000\ncapabilities = [\"lora:EU868\"]\nask_per_day = \"6000000\"\nask_per_day_min = \"3000000\"\n\
                 served_hour_cost = \"100000\"\nstake_max = \"500000000\"\ndeadline_min = {}\ndays_max = 30\nhandback_quiet_max = 600000\n\
                 [provider.capacity]\ncpu_millis = 4000\nmemory_bytes = 4000000000\nstorage_bytes = 8000000000\nbandwidth_bps = 10000000\nuptime_s = 31536000\n\
                 interfaces = [{{ kind = \"lora\", region = \"EU868\", slots = 20000 }}]\n",
                settings.ttl_ms * 3 / 2
            );
        self.write("patras.policy.toml", &policy)?;
        self.node_config("patras", "edge", 1)
    }

    /// The fleet's devices as the customer's configuration.
    pub async fn provision(&self) -> anyhow::Result<()> {
        let Settings { seed, motes, rx2_sf, otaa, .. } = &self.settings;
        let fleet =
            [format!("--seed={seed}"), format!("--motes={motes}"), format!("--rx2-sf={rx2_sf}"), format!("--otaa={otaa}")];
        let configuration = configuration(&self.program("antirio-radio"), &fleet, &self.directory).await?;
        self.write("devices.json", &configuration.to_string())?;
        Ok(())
    }

    pub async fn start_radio(&mut self) -> anyhow::Result<()> {
        let settings = &self.settings;
        let gateway = |eui: &str, name: &str| {
            format!("--gateway={eui}@{}", self.place(name).addresses.lora.map(|a| a.to_string()).unwrap_or_default())
        };
        let mut arguments = vec![
            format!("--seed={}", settings.seed),
            format!("--loss={}", settings.loss),
            format!("--rx2-sf={}", settings.rx2_sf),
            format!("--otaa={}", settings.otaa),
            format!("--rejoin={}", settings.rejoin),
            format!("--ledgers={}", self.ledgers.display()),
            "--quit-on-eof".to_owned(),
        ];
        let plain =
            [("motes", settings.motes.to_string()), ("rate", settings.rate.clone()), ("confirmed", settings.confirmed.clone())];
        for (name, value) in plain {
            let flag = format!("--{name}=");
            if !settings.radio.iter().any(|other| other.starts_with(&flag)) {
                arguments.push(flag + &value);
            }
        }
        arguments.extend(settings.radio.iter().cloned());
        arguments.extend(settings.gateways.iter().map(|(eui, name)| gateway(eui, name)));
        let program = self.program("antirio-radio");
        let mut start = Start::new("radio", &program, &arguments, &self.directory);
        (start.is_piped, start.namespace) = (true, self.radio_namespace.as_deref());
        let mut radio = start.run()?;
        self.radio_input = radio.take_input();
        self.processes.insert("radio", radio);
        Ok(())
    }

    async fn tell_radio(&mut self, command: &str) -> anyhow::Result<()> {
        let input = self.radio_input.as_mut().context("the radio runs")?;
        input.write_all(format!("{command}\n").as_bytes()).await?;
        Ok(input.flush().await?)
    }

    /// No new readings; waits until no confirmed uplink is under way, or the bound has passed.
    pub async fn drain_radio(&mut self, bound: Duration) -> anyhow::Result<()> {
        self.tell_radio("stop-sending").await?;
        self.tell_radio(&format!("drain {}", bound.as_millis())).await?;
        self.wait_radio_says("\"drained\"", bound + Duration::from_secs(10)).await
    }

    /// Ends the radio; its ledgers are flushed.
    pub async fn quit_radio(&mut self) -> anyhow::Result<()> {
        self.tell_radio("quit").await?;
        self.wait_radio_says("\"stopped\"", Duration::from_secs(10)).await?;
        match self.processes.remove("radio") {
            Some(radio) => radio.stop().await,
            None => Ok(()),
        }
    }

    async fn wait_radio_says(&self, what: &str, bound: Duration) -> anyhow::Result<()> {
        poll::until_said(&self.directory.join("radio.log"), what, bound).await
    }

    async fn wait_healthy(&mut self, name: &'static str) -> anyhow::Result<()> {
        let url = format!("http://{}/healthz", self.place(name).api);
        let what = format!("{name} answers at {url}");
        poll::until(&what, START_MAX, Duration::from_millis(10), async || {
            self.check(name)?;
            Ok(process::is_answering(&self.http, &url).await.then_some(()))
        })
        .await
    }

    /// `Err` if a process that should run has ended.
    pub fn check(&mut self, name: &str) -> anyhow::Result<()> {
        self.processes.get_mut(name).with_context(|| format!("{name} was not started"))?.check()
    }

    pub fn check_all(&mut self) -> anyhow::Result<()> {
        self.processes.values_mut().try_for_each(Process::check)
    }

    /// SIGKILL; returns the moment directly before it.
    pub async fn kill(&mut self, name: &'static str) -> anyhow::Result<WallTime> {
        let process = self.processes.remove(name).with_context(|| format!("{name} does not run"))?;
        let now = self.clock.wall();
        process.kill().await?;
        self.end_life(name, now);
        Ok(now)
    }

    /// SIGTERM, and waits until it has ended in order.
    pub async fn end(&mut self, name: &'static str) -> anyhow::Result<()> {
        if !self.ending.contains_key(name) {
            self.tell_to_end(name)?;
        }
        match self.ending.remove(name) {
            Some(process) => process.stop().await,
            None => Ok(()),
        }
    }

    /// SIGTERM only.
    pub fn tell_to_end(&mut self, name: &'static str) -> anyhow::Result<()> {
        let process = self.processes.remove(name).with_context(|| format!("{name} does not run"))?;
        let now = self.clock.wall();
        process.signal(Signal::TERM);
        self.end_life(name, now);
        self.ending.insert(name, process);
        Ok(())
    }

    pub fn is_ending(&self, name: &str) -> bool {
        self.ending.contains_key(name)
    }

    pub fn runs(&self, name: &str) -> bool {
        self.processes.contains_key(name)
    }

    /// SIGKILL for the running containers of a node with the embedded engine; the node goes on.
    pub fn kill_containers(&self, name: &str) -> anyhow::Result<()> {
        let killed = containers::kill(&self.directory.join(name), SERVICE_PROGRAM)?;
        anyhow::ensure!(killed > 0, "{name} runs no container");
        Ok(())
    }

    /// SIGSTOP.
    pub fn pause(&self, name: &str) -> anyhow::Result<()> {
        self.processes.get(name).with_context(|| format!("{name} does not run"))?.signal(Signal::STOP);
        Ok(())
    }

    /// SIGCONT, if it runs.
    pub fn resume(&self, name: &str) {
        if let Some(process) = self.processes.get(name) {
            process.signal(Signal::CONT);
        }
    }

    /// From this moment on, what the node hears need not reach a disk; a life that ended already stays as it is.
    pub fn end_life(&mut self, name: &'static str, at: WallTime) {
        if let Some(last) = self.lives.get_mut(name).and_then(|lives| lives.last_mut()) {
            last.1 = Some(last.1.map_or(at, |ended| ended.min(at)));
        }
    }

    /// From this moment on it must; nothing changes if it had to before.
    pub fn begin_life(&mut self, name: &'static str, at: WallTime) {
        let lives = self.lives.entry(name).or_default();
        if lives.last().is_none_or(|(_, to)| to.is_some()) {
            lives.push((at, None));
        }
    }

    /// Resident memory of every process, in megabytes: now, highest.
    pub fn memory_mb(&self) -> BTreeMap<String, (f64, f64)> {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let mb = |kb: u64| (kb as f64 / 1_024.0 * 10.0).round() / 10.0;
        self.processes
            .iter()
            .filter_map(|(name, p)| p.memory_kb().map(|(now, high)| ((*name).to_owned(), (mb(now), mb(high)))))
            .collect()
    }

    pub fn process_id(&self, name: &str) -> Option<u32> {
        self.processes.get(name).and_then(Process::id)
    }

    /// Ends everything, nodes before the center, and removes what they left on this machine.
    pub async fn stop(&mut self) {
        self.radio_input = None;
        for name in ["radio", "rio", "patras", "cloud", "arbitrator", "marketplace"] {
            let process = self.processes.remove(name).or_else(|| self.ending.remove(name));
            if let Some(process) = process
                && let Err(error) = process.stop().await
            {
                eprintln!("{name} could not be ended: {error:#}");
            }
        }
    }
}

/// The configuration of the LoRa device service for a fleet, which the radio's arguments name.
pub async fn configuration(radio: &Path, fleet: &[String], directory: &Path) -> anyhow::Result<serde_json::Value> {
    let list = directory.join("provisioning.json");
    let mut command = tokio::process::Command::new(radio);
    let output = command.args(fleet).args(["--provisioning-only", "--provisioning"]).arg(&list).output().await?;
    anyhow::ensure!(output.status.success(), "provisioning failed: {}", String::from_utf8_lossy(&output.stderr));
    let list: serde_json::Value = serde_json::from_slice(&std::fs::read(&list)?)?;
    let devices = list["devices"].as_array().context("a provisioning list has devices")?;
    // The list has spreading factors (`SF12BW125`), the configuration data rates.
    let rx2 = list["rx2_data_rate"].as_str().and_then(|text| text.parse::<motes::airtime::SpreadingFactor>().ok());
    let rx2_data_rate = rx2.context("the list has the second window's data rate")?.to_data_rate();
    let of = |device: &serde_json::Value| json!({"rx2_data_rate": rx2_data_rate, "dev_eui": device["dev_eui"], "dev_addr": device["dev_addr"], "nwk_s_key": device["nwk_s_key"], "app_s_key": device["app_s_key"], "codec": "cayenne-lpp"});
    let of_joining = |device: &serde_json::Value| {
        let (otaa, is_1_0_4) = (&device["otaa"], device["otaa"]["rules"] == "1.0.4");
        json!({"rx2_data_rate": rx2_data_rate, "dev_eui": device["dev_eui"], "dev_addr": device["dev_addr"], "join_eui": otaa["join_eui"], "app_key": otaa["app_key"],
            "dev_nonces": if is_1_0_4 { "rising" } else { "random" }, "codec": "cayenne-lpp"})
    };
    let (joining, devices): (Vec<_>, Vec<_>) = devices.iter().partition(|device| device["otaa"].is_object());
    Ok(json!({
        "devices": devices.into_iter().map(of).collect::<Vec<_>>(),
        "joining": joining.into_iter().map(of_joining).collect::<Vec<_>>(),
    }))
}
