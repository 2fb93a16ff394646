//! Where each process listens, and how it is reached: all on loopback, or each in a network namespace of its own.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Every process of a deployment but the radio; edges hear gateways.
pub const PROCESSES: [(&str, bool); 5] =
    [("rio", true), ("patras", true), ("cloud", false), ("arbitrator", false), ("marketplace", false)];

/// The addresses of one process.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Name of its network namespace; nothing for this program's own.
    pub namespace: Option<String>,
    /// HTTP, as the process binds it.
    pub api_bind: SocketAddr,
    /// HTTP, as this program reaches it.
    pub api: SocketAddr,
    /// HTTP, as the other processes reach it (marketplace and arbitrator).
    pub api_public: SocketAddr,
    pub peering: SocketAddr,
    /// UDP for gateways, as the process binds it.
    pub lora_bind: Option<SocketAddr>,
    /// The same as the gateway reaches it.
    pub lora: Option<SocketAddr>,
}

pub fn free_tcp() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub fn free_udp() -> anyhow::Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

/// Free ports of this machine.
pub fn loopback() -> anyhow::Result<BTreeMap<&'static str, Addresses>> {
    let addresses = |has_lora: bool| -> anyhow::Result<Addresses> {
        let (api, lora) = (free_tcp()?, if has_lora { Some(free_udp()?) } else { None });
        let peering = free_udp()?;
        Ok(Addresses { namespace: None, api_bind: api, api, api_public: api, peering, lora_bind: lora, lora })
    };
    PROCESSES.into_iter().map(|(name, has_lora)| Ok((name, addresses(has_lora)?))).collect()
}
