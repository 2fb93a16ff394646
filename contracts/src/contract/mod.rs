//! The contract: its text, which both parties and the arbitrator sign, and the life of it.
//!
//! - [`text`] — parties, devices, blueprint, terms, money
//! - [`life`] — one transition table over its states

pub mod life;
pub mod text;

pub use life::{Event, Outcome, State};
pub use text::{Contract, Money, Party, Terms};
