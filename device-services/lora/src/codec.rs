//! Payload formats: [`cayenne_lpp`] here and now, [`javascript`] in a process of its own ([`worker`]), of which a thread takes care
//! ([`scripts`]).

pub mod cayenne_lpp;
pub mod javascript;
pub mod scripts;
pub mod worker;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a payload says, as far as it could be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoded {
    /// The port that the codec chose.
    pub f_port: Option<u8>,
    /// At most [`tenant::PAYLOAD_BYTES_MAX`] bytes.
    pub bytes: Vec<u8>,
}
