//! Payload formats.

pub mod cayenne_lpp;

use serde_json::{Map, Value};

/// What a payload says, as far as it could be read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    /// Values by name.
    pub values: Map<String, Value>,
    /// Why the rest could not be read.
    pub error: Option<String>,
}
