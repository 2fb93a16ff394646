//! Payload formats: [`cayenne_lpp`] here and now, [`javascript`] in a thread of its own ([`scripts`]).

pub mod cayenne_lpp;
pub mod javascript;
pub mod scripts;

use serde_json::{Map, Value};

/// What a payload says, as far as it could be read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    /// Values by name.
    pub values: Map<String, Value>,
    /// What the codec thought worth saying.
    pub warnings: Vec<String>,
    /// Why the rest could not be read.
    pub error: Option<String>,
}

impl Decoded {
    /// Nothing but a reason.
    #[must_use]
    pub fn failed(reason: impl Into<String>) -> Self {
        Decoded { error: Some(reason.into()), ..Decoded::default() }
    }
}

/// What a codec made of values: a payload, not yet encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The port that the codec chose.
    pub f_port: Option<u8>,
    /// At most [`tenant::PAYLOAD_BYTES_MAX`] bytes.
    pub bytes: Vec<u8>,
}
