//! The judge: simulated LoRaWAN motes, the radio between them and virtual gateways, and the audit of what came of it.
//!
//! Nothing here shares LoRaWAN code with the product. Frames are built by the `lorawan` crate, the mote's rules are LMIC's,
//! the gateways speak to the product only through UDP as Semtech's packet forwarder does.
//!
//! # Layout
//! | module | what it holds |
//! |---|---|
//! | [`seed`] | every decision that chance would make, as a pure function of the seed |
//! | [`fleet`] | identities and keys of the motes, exported for provisioning |
//! | [`airtime`] | data rates and time on air |
//! | [`frame`] | uplinks built, downlinks checked, from bytes |
//! | [`crypto`] | AES-128 and CMAC, by the `lorawan` crate's own primitives |
//! | [`join`] | join requests and accepts as a mote sees them (pure) |
//! | [`link`] | what the server told a mote by MAC commands, and what it answers (pure) |
//! | [`mote`] | one mote: joining, class A windows, retry rule, acceptance of downlinks (pure) |
//! | [`radio`] | who hears what, when; the agenda of all motes (pure) |
//! | [`jit`] | a packet forwarder's transmit queue (pure) |
//! | [`gwmp`] | the gateway's side of the Semtech UDP protocol, version 2 (pure) |
//! | [`gateway`] | a virtual gateway on two UDP sockets |
//! | [`ledger`] | the records of motes, radio and gateways; append-only files |
//! | [`world`] | runs all of it in real time |
//! | [`load`] | more frames than the rules of the air allow, for throughput |
//! | [`audit`] | compares the ledgers with what was delivered (pure) |
//! | [`process`] | the whole as a program |
//!
//! # What is deliberately absent
//! Collisions between uplinks, half-duplex gateways, sensitivity by data rate, FSK, class B and C.
//! Loss is one number per link, independent for each frame.

pub mod airtime;
pub mod audit;
pub mod crypto;
pub mod fleet;
pub mod frame;
pub mod gateway;
pub mod gwmp;
pub mod jit;
pub mod join;
pub mod ledger;
pub mod link;
pub mod load;
pub mod mote;
pub mod process;
pub mod radio;
pub mod seed;
pub mod world;

pub use process::{RadioArgs, radio_process};
pub use world::{World, WorldConfig};
