//! The decision-making unit: rule-based, from the owner's policy file.
//!
//! - [`policy`] — what the owner allows and wants
//! - [`meter`] — what a deployment used: percentile and peak
//! - [`estimate`] — what the running services need, and what is free for others
//! - [`profile`] — leases for links, and what they cost on them
//! - [`negotiation`] — alternating offers between two nodes

pub mod estimate;
pub mod meter;
pub mod negotiation;
pub mod policy;
pub mod profile;
