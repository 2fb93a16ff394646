//! What leases cost on the wire: bytes between customer, provider and witness, counted by the kernel in network namespaces; prints JSON.
//!
//! `cargo run --release -p peering --example lease_traffic -- [--seconds N] [--json FILE]`
//!
//! Each case has three network namespaces of its own with a link between every two, and in each a process with the product's endpoint and
//! custody driver. Counted are UDP packets with their UDP and IP headers, both directions, in steady state: renewals, answers, pings, QUIC's
//! acknowledgements and keep-alives. Needs root; without, it says SKIPPED.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use contracts::custody::{Durable, Readiness};
use contracts::envelope::Keypair;
use contracts::ids::{GroupId, NodeId};
use contracts::time::Millis;
use kit::clock::Clock;
use peering::custody::{self, GroupConfig, Role, Setup, VoteStore};
use peering::endpoint::Config;
use peering::{AddressBook, Endpoint, Transport};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const PORT: u16 = 7_400;
/// Customer, provider, witness.
const MEMBERS: [u8; 3] = [1, 2, 3];
const NAMES: [&str; 3] = ["customer", "provider", "witness"];
/// Members' links; the customer holds.
const LINKS: [(u8, u8); 3] = [(1, 2), (1, 3), (2, 3)];
/// After the lease stands, until QUIC has found the path's size, of two connections that were dialled at once one has ended, and
/// everything is as it will be.
const SETTLE: Duration = Duration::from_secs(40);

/// Packets and bytes so far, from one member to another.
type Sent = BTreeMap<(u8, u8), (u64, u64)>;

#[derive(Debug, Clone, Copy)]
struct Case {
    groups: u16,
    ttl_ms: u64,
}

const CASES: [Case; 8] = [
    Case { groups: 1, ttl_ms: 300 },
    Case { groups: 1, ttl_ms: 1_000 },
    Case { groups: 1, ttl_ms: 10_000 },
    Case { groups: 1, ttl_ms: 30_000 },
    Case { groups: 50, ttl_ms: 300 },
    Case { groups: 50, ttl_ms: 1_000 },
    Case { groups: 50, ttl_ms: 10_000 },
    Case { groups: 50, ttl_ms: 30_000 },
];

fn key(member: u8) -> Keypair {
    Keypair::from_secret(&[member; 32])
}

/// On the link of `a` and `b`, the address of `a`.
fn address(a: u8, b: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, a.min(b) * 10 + a.max(b), a)
}

fn group(number: u16) -> GroupId {
    let mut bytes = [0x21; 16];
    let number = u32::from(number) + 1;
    bytes[12..].copy_from_slice(&number.wrapping_mul(0x85eb_ca6b).to_be_bytes());
    GroupId::from_bytes(bytes)
}

/// Votes in memory: disks are not what is measured.
#[derive(Debug, Default)]
struct NoDisk;

#[async_trait::async_trait]
impl VoteStore for NoDisk {
    async fn persist(&self, _: &[(GroupId, Durable)]) -> std::io::Result<()> {
        Ok(())
    }

    async fn load(&self, _: GroupId) -> std::io::Result<Option<Durable>> {
        Ok(None)
    }
}

/// One member, until its standard input ends; says "settled" when it holds or follows in all groups.
async fn member(me: u8, case: Case) -> Result<(), Failure> {
    let addresses = AddressBook::new();
    for other in MEMBERS.into_iter().filter(|other| *other != me) {
        addresses.set(key(other).node_id(), [SocketAddr::from((address(other, me), PORT))]);
    }
    let clock = Clock::system();
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let mut config = Config::new(key(me).secret(), any, Arc::new(|_| true), clock.clone());
    config.addresses = addresses;
    let transport: Arc<dyn Transport> = Arc::new(Endpoint::bind(config).await?);
    let (handle, routes) = custody::start(Setup::new(Arc::clone(&transport), key(me), clock, Arc::new(NoDisk)))?;
    transport.serve(routes);
    let members: Vec<NodeId> = MEMBERS.iter().map(|member| key(*member).node_id()).collect();
    let readiness = if me == 3 { Readiness::Unready } else { Readiness::Ready };
    for number in 0..case.groups {
        let candidates = members[..2].to_vec();
        let config = GroupConfig {
            group: group(number),
            eligible: candidates.clone(),
            candidates,
            first_holder: members[0],
            members: members.clone(),
            ttl: Millis(case.ttl_ms),
            // The provider's own test: it takes over if the customer is late, which would change what is measured.
            readiness: if me == 2 { Readiness::SuccessorOnly } else { readiness },
        };
        handle.add_group(config).await?;
    }
    for number in 0..case.groups {
        let mut view = handle.subscribe(group(number)).ok_or("driven")?;
        let settled = |role: &Role| match role {
            Role::Holder { .. } => me == 1,
            Role::Follower { holder, .. } => *holder == Some(members[0]) && me != 1,
            Role::Fenced { .. } | Role::Recovering | Role::Stopped => false,
        };
        view.wait_for(|view| settled(&view.role) && view.missing.is_empty()).await?;
    }
    println!("settled");
    std::io::stdout().flush()?;
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    ended.await??;
    Ok(())
}

fn command(words: &str) -> Result<String, Failure> {
    let mut words_of = words.split_whitespace();
    let output = Command::new(words_of.next().ok_or("a program")?).args(words_of).output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{words}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// Three namespaces with members in them; all gone when dropped.
struct World {
    case: Case,
    names: BTreeMap<u8, String>,
    members: Vec<Child>,
}

impl World {
    fn build(number: usize, case: Case) -> Result<Self, Failure> {
        let names = MEMBERS.iter().map(|member| (*member, format!("lt{}-{number}{member}", std::process::id()))).collect();
        let mut world = Self { case, names, members: Vec::new() };
        for name in world.names.values() {
            command(&format!("ip netns add {name}"))?;
            command(&format!("ip -n {name} link set lo up"))?;
        }
        for (a, b) in LINKS {
            let (at_a, at_b) = (&world.names[&a], &world.names[&b]);
            command(&format!("ip -n {at_a} link add to{b} type veth peer name to{a} netns {at_b}"))?;
            for (me, other) in [(a, b), (b, a)] {
                let name = &world.names[&me];
                command(&format!("ip -n {name} addr add {}/24 dev to{other}", address(me, other)))?;
                command(&format!("ip -n {name} link set to{other} up"))?;
                command(&format!("ip netns exec {name} iptables -w -A OUTPUT -o to{other} -p udp"))?;
            }
        }
        world.start_members()?;
        Ok(world)
    }

    fn start_members(&mut self) -> Result<(), Failure> {
        // The customer last: its first renewals find everybody.
        for member in [3, 2, 1] {
            let mut nsenter = Command::new("nsenter");
            nsenter.arg(format!("--net=/run/netns/{}", self.names[&member])).arg(std::env::current_exe()?);
            let words = ["member".to_owned(), member.to_string(), self.case.groups.to_string(), self.case.ttl_ms.to_string()];
            self.members.push(nsenter.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        }
        for child in &mut self.members {
            let said = child.stdout.take().ok_or("a pipe")?;
            let mut line = String::new();
            BufReader::new(said).read_line(&mut line)?;
            if line.trim() != "settled" {
                return Err("a member did not settle".into());
            }
        }
        Ok(())
    }

    /// Packets and bytes (with IP and UDP headers) sent so far from each member to each other.
    fn sent(&self) -> Result<Sent, Failure> {
        let mut sent = BTreeMap::new();
        for (me, name) in &self.names {
            let rules = command(&format!("ip netns exec {name} iptables -w -v -S OUTPUT"))?;
            for line in rules.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                if let ["-A", "OUTPUT", "-o", out, "-p", "udp", "-c", packets, bytes] = words.as_slice()
                    && let Some(other) = out.strip_prefix("to")
                {
                    sent.insert((*me, other.parse()?), (packets.parse()?, bytes.parse()?));
                }
            }
        }
        if sent.len() == 2 * LINKS.len() { Ok(sent) } else { Err(format!("the counters cannot be read: {sent:?}").into()) }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.members {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in self.names.values() {
            let _ = command(&format!("ip netns del {name}"));
        }
    }
}

fn report(case: Case, before: &Sent, after: &Sent, seconds: f64) -> Value {
    let mut links = serde_json::Map::new();
    let mut all = 0.0;
    for (a, b) in LINKS {
        let mut link = (0, 0);
        for way in [(a, b), (b, a)] {
            link = (link.0 + after[&way].0 - before[&way].0, link.1 + after[&way].1 - before[&way].1);
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (packets, bits) = (link.0 as f64 / seconds, link.1 as f64 * 8.0 / seconds);
        all += bits;
        let name = format!("{}-{}", NAMES[usize::from(a) - 1], NAMES[usize::from(b) - 1]);
        links.insert(name, json!({ "bits_per_second": bits, "packets_per_second": packets }));
    }
    let each = all / f64::from(case.groups);
    json!({
        "groups": case.groups, "ttl_ms": case.ttl_ms, "links": links,
        "all_links_bits_per_second": all, "all_links_bits_per_second_and_contract": each,
    })
}

fn measure(seconds: u64) -> Result<Vec<Value>, Failure> {
    let mut worlds = Vec::new();
    for (number, case) in CASES.into_iter().enumerate() {
        worlds.push(World::build(number, case)?);
    }
    eprintln!("{} cases stand; {} s until they are quiet, then {seconds} s of counting", worlds.len(), SETTLE.as_secs());
    std::thread::park_timeout(SETTLE);
    let mut before = Vec::new();
    for world in &worlds {
        before.push((Instant::now(), world.sent()?));
    }
    std::thread::park_timeout(Duration::from_secs(seconds));
    let mut found = Vec::new();
    for (world, (since, before)) in worlds.iter().zip(before) {
        let after = world.sent()?;
        found.push(report(world.case, &before, &after, since.elapsed().as_secs_f64()));
    }
    Ok(found)
}

/// Ctrl-C goes to the whole group of processes: members end with their namespaces' owner, which cleans up.
fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (mut seconds, mut path) = (120, None);
    match words.as_slice() {
        ["member", me, groups, ttl_ms] => {
            let case = Case { groups: groups.parse()?, ttl_ms: ttl_ms.parse()? };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(member(me.parse()?, case));
        }
        options => {
            for pair in options.chunks(2) {
                match pair {
                    ["--seconds", value] => seconds = value.parse()?,
                    ["--json", value] => path = Some((*value).to_owned()),
                    _ => return Err("usage: lease_traffic [--seconds N] [--json FILE]".into()),
                }
            }
        }
    }
    if command("id -u")?.trim() != "0" {
        println!("SKIPPED: network namespaces need root");
        return Ok(());
    }
    let found = serde_json::to_string_pretty(&json!({ "seconds": seconds, "cases": measure(seconds)? }))?;
    println!("{found}");
    if let Some(path) = path {
        std::fs::write(path, found)?;
    }
    Ok(())
}
