//! A network namespace for each process and one hub that routes between them, so that every link can be cut, half cut or made lossy.
//!
//! The hub's end of a link is taken down to cut it (the other end loses its carrier); what goes wrong between two processes is a rule of the
//! hub's firewall. The radio has links of its own to both edges, past the hub: a gateway stands beside its node and is never cut off.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::kind::{Cut, Who};
use crate::address::{Addresses, PROCESSES};

const API_PORT: u16 = 8080;
const PEERING_PORT: u16 = 7100;
const LORA_PORT: u16 = 1700;

/// The namespaces; deleted when dropped.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    addresses: BTreeMap<&'static str, Addresses>,
    /// Dropping one ends the thread that carries HTTP into a namespace.
    carriers: Vec<oneshot::Sender<()>>,
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let error = || format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    anyhow::ensure!(output.status.success(), error());
    Ok(())
}

fn ip(line: &str) -> anyhow::Result<()> {
    run("ip", &line.split_whitespace().collect::<Vec<_>>())
}

/// The address of a process (last part 2) or of the hub's end of its link (last part 1).
fn address(index: usize, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, u8::try_from(index).unwrap_or(u8::MAX) + 1, last)
}

/// The same on the link between an edge and the radio.
fn air(index: usize, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, u8::try_from(index).unwrap_or(u8::MAX) + 1, last)
}

impl Network {
    /// Makes all namespaces and links.
    ///
    /// # Errors
    /// What the machine refuses: without root, iproute2 and iptables there is no network of this kind.
    pub fn create() -> anyhow::Result<Self> {
        let prefix = format!("antirio-{}", std::process::id());
        // From here on dropping it removes whatever was made.
        let mut network = Self { prefix, addresses: BTreeMap::new(), carriers: Vec::new() };
        for name in ["hub", "radio"].into_iter().chain(PROCESSES.map(|(name, _)| name)) {
            let namespace = network.namespace(name);
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        network.in_hub("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        for (index, (name, has_lora)) in PROCESSES.into_iter().enumerate() {
            network.link_to_hub(index, name)?;
            if has_lora {
                network.link_to_radio(index, name)?;
            }
            let (addresses, carrier) = network.addresses_of(index, name, has_lora)?;
            network.addresses.insert(name, addresses);
            network.carriers.push(carrier);
        }
        // Shows early whether loss can be made.
        network.apply(Cut::Loss { percent: 1 })?;
        network.heal()?;
        Ok(network)
    }

    pub fn addresses(&self) -> BTreeMap<&'static str, Addresses> {
        self.addresses.clone()
    }

    /// The full name of a namespace.
    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn in_hub(&self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let hub = self.namespace("hub");
        run("ip", &[&["netns", "exec", &hub, program], arguments].concat())
    }

    fn link_to_hub(&self, index: usize, name: &str) -> anyhow::Result<()> {
        let (hub, own) = (self.namespace("hub"), self.namespace(name));
        let (near, far) = (address(index, 1), address(index, 2));
        ip(&format!("link add eth0 netns {own} type veth peer name {name} netns {hub}"))?;
        ip(&format!("-n {hub} addr add {near}/24 dev {name}"))?;
        ip(&format!("-n {own} addr add {far}/24 dev eth0"))?;
        ip(&format!("-n {hub} link set {name} up"))?;
        ip(&format!("-n {own} link set eth0 up"))?;
        ip(&format!("-n {own} route add default via {near}"))
    }

    fn link_to_radio(&self, index: usize, name: &str) -> anyhow::Result<()> {
        let (radio, own) = (self.namespace("radio"), self.namespace(name));
        ip(&format!("link add air netns {own} type veth peer name {name} netns {radio}"))?;
        ip(&format!("-n {own} addr add {}/24 dev air", air(index, 1)))?;
        ip(&format!("-n {radio} addr add {}/24 dev {name}", air(index, 2)))?;
        ip(&format!("-n {own} link set air up"))?;
        ip(&format!("-n {radio} link set {name} up"))
    }

    fn addresses_of(&self, index: usize, name: &str, has_lora: bool) -> anyhow::Result<(Addresses, oneshot::Sender<()>)> {
        let namespace = self.namespace(name);
        // Marketplace and arbitrator serve others; a node's API knows no passwords and stays on its loopback.
        let is_public = matches!(name, "arbitrator" | "marketplace");
        let api_bind: SocketAddr =
            if is_public { (Ipv4Addr::UNSPECIFIED, API_PORT).into() } else { (Ipv4Addr::LOCALHOST, API_PORT).into() };
        let (api, carrier) = carry_http(&namespace)?;
        let addresses = Addresses {
            namespace: Some(namespace),
            api_bind,
            api,
            api_public: (address(index, 2), API_PORT).into(),
            peering: (address(index, 2), PEERING_PORT).into(),
            lora_bind: has_lora.then(|| (Ipv4Addr::UNSPECIFIED, LORA_PORT).into()),
            lora: has_lora.then(|| (air(index, 1), LORA_PORT).into()),
        };
        Ok((addresses, carrier))
    }

    fn address(&self, who: Who) -> String {
        self.addresses[who.name()].api_public.ip().to_string()
    }

    /// Breaks something, beside what is broken already.
    pub fn apply(&self, cut: Cut) -> anyhow::Result<()> {
        let rule = |matches: &[&str]| self.in_hub("iptables", &[&["-w", "-A", "FORWARD"], matches, &["-j", "DROP"]].concat());
        match cut {
            Cut::Link(who) => ip(&format!("-n {} link set {} down", self.namespace("hub"), who.name())),
            Cut::Pair(one, other) => {
                let (one, other) = (self.address(one), self.address(other));
                rule(&["-s", &one, "-d", &other])?;
                rule(&["-s", &other, "-d", &one])
            }
            Cut::Deaf(who) => rule(&["-d", &self.address(who)]),
            Cut::Mute(who) => rule(&["-s", &self.address(who)]),
            Cut::Loss { percent } => {
                let probability = format!("0.{percent:02}");
                rule(&["-m", "statistic", "--mode", "random", "--probability", &probability])
            }
        }
    }

    /// Everything works again.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.in_hub("iptables", &["-w", "-F", "FORWARD"])?;
        for (name, _) in PROCESSES {
            ip(&format!("-n {} link set {name} up", self.namespace("hub")))?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in ["hub", "radio"].into_iter().chain(PROCESSES.map(|(name, _)| name)) {
            // What was never made cannot be removed.
            let _removed = ip(&format!("netns del {}", self.namespace(name)));
        }
    }
}

/// A port of this machine that leads to the API inside the namespace, whatever is cut: a thread lives there and copies bytes.
fn carry_http(namespace: &str) -> anyhow::Result<(SocketAddr, oneshot::Sender<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let path = format!("/run/netns/{namespace}");
    let inside = File::open(&path).with_context(|| path)?;
    let (sender, mut ended) = oneshot::channel::<()>();
    std::thread::spawn(move || -> anyhow::Result<()> {
        move_into_link_name_space(inside.as_fd(), Some(LinkNameSpaceType::Network))?;
        // One thread: whatever it connects is in the namespace.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (mut outside, _) = tokio::select! {
                    biased;
                    _ = &mut ended => return Ok(()),
                    accepted = listener.accept() => accepted?,
                };
                tokio::spawn(async move {
                    if let Ok(mut inside) = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, API_PORT)).await {
                        // Either end may break off at any time.
                        let _copied = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                    }
                });
            }
        })
    });
    Ok((address, sender))
}
