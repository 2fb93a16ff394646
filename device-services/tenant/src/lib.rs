//! The protocol between a tenant container and its node: HTTP/1.1 over a Unix socket in a directory that the node mounts at
//! `/run/antirio`. A tenant has no network and keeps no state: what it needs it asks for here, what it makes it hands in here.
//! Both sides use the structs of this crate; [`Client`] is the tenant's side, the node serves the same paths.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/config` ([`CONFIG`]) | | the opened configuration: JSON that only the tenant understands |
//! | `PUT /v1/devices` ([`DEVICES`]) | [`Registration`] | [`Registered`]; replaces what was registered before |
//! | `GET /v1/uplinks?after=N` ([`UPLINKS`]) | | endless NDJSON of [`Uplink`], by rising cursor; without `after`: all without a reading, then live; with it: all behind it that the node still has (a day after they were settled) |
//! | `POST /v1/readings` ([`READINGS`]) | [`ReadingBatch`] | [`Accepted`]: on the node's disk; a repeated event id counts as accepted |
//! | `POST /v1/downlinks` ([`DOWNLINKS`]) | [`Downlink`] | [`Queued`]; repeating an id changes nothing |
//! | `GET /v1/downlinks?after=N` | | [`DownlinkEvents`]: what became of downlinks, and what is to be encrypted; waits for the first |
//! | `PUT /v1/downlinks` | [`Encrypted`] | 204; a question that is no longer open is passed over |
//! | `GET /v1/state/{key}` ([`STATE`]) | | the bytes put there, 404 if none |
//! | `PUT /v1/state/{key}` | bytes | 204; on the node's disk |
//! | `GET /v1/healthz` ([`HEALTH`]) | | [`Health`] |
//! | `CONNECT host:port` | | a byte stream to an address that the node's operator allows; 403 if not allowed, 502 if nobody answers |
//! | `GET /v1/ingress` ([`INGRESS`]), `Upgrade: `[`INGRESS_PROTOCOL`] | | 101 when somebody connected to the address that the operator opened for this tenant, then its bytes; 404 without such an address |
//!
//! Errors are problem documents ([`Problem`], RFC 9457). Every request may be repeated. Blank lines in the stream of uplinks only
//! keep it alive. A node that restarts ends the stream; the tenant connects again and starts without a cursor: the node knows
//! which uplinks have no reading yet.
//!
//! # Layout
//! `ids` text forms | `messages` what is sent, with its limits | [`downlinks`] | `client` requests | `uplinks` the stream | `backoff`

mod backoff;
mod client;
pub mod downlinks;
mod ids;
mod messages;
mod uplinks;

pub use self::{
    backoff::Backoff,
    client::{Client, Connecting, Connector, Duplex, Error},
    downlinks::{
        COUNTERS_MAX, DOWNLINK_EVENTS_MAX, DOWNLINK_WAIT_MS_MAX, Delivery, Downlink, DownlinkEvent, DownlinkEvents,
        DownlinkState, ENCRYPTED_BODY_BYTES_MAX, Encrypted, Joined, Queued,
    },
    ids::{DevAddr, DevEui, EventId, HexBytes, InvalidText, Key},
    messages::{
        Accepted, Desired, DesiredChannel, DevNonces, Device, DeviceStatus, Health, JoiningDevice, Problem, Reading,
        ReadingBatch, Reception, Refused, Registered, Registration, Uplink, UplinkKind, check_state_key,
    },
    uplinks::{Line, Uplinks},
};

/// The socket as a tenant sees it.
pub const SOCKET: &str = "/run/antirio/node.sock";

/// Path of the configuration.
pub const CONFIG: &str = "/v1/config";
/// Path of the registered devices.
pub const DEVICES: &str = "/v1/devices";
/// Path of the stream of uplinks; query parameter [`AFTER`].
pub const UPLINKS: &str = "/v1/uplinks";
/// Query parameter of [`UPLINKS`]: the cursor after which to start.
pub const AFTER: &str = "after";
/// Path of readings.
pub const READINGS: &str = "/v1/readings";
/// Path of the downlink queue.
pub const DOWNLINKS: &str = "/v1/downlinks";
/// Path below which a tenant keeps small values: `/v1/state/{key}`.
pub const STATE: &str = "/v1/state";
/// Path of the health answer.
pub const HEALTH: &str = "/v1/healthz";

/// Path at which a tenant waits for connections from outside.
pub const INGRESS: &str = "/v1/ingress";
/// Name of what follows the answer at [`INGRESS`]: the bytes of the connection.
pub const INGRESS_PROTOCOL: &str = "antirio-stream";

/// Media type of the stream of uplinks.
pub const NDJSON: &str = "application/x-ndjson";
/// Media type of errors.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Most devices of one registration.
pub const DEVICES_MAX: usize = 10_000;
/// Largest body of a registration in bytes: 10,000 devices of at most 400 bytes.
pub const DEVICES_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest configuration in bytes.
pub const CONFIG_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most readings of one batch.
pub const READINGS_MAX: usize = 256;
/// Largest reading as JSON in bytes; twice what a full LoRaWAN payload of the densest codec decodes to.
pub const READING_BYTES_MAX: usize = 8 * 1024;
/// Largest body of a batch of readings in bytes.
pub const READINGS_BODY_BYTES_MAX: usize = READINGS_MAX * READING_BYTES_MAX + 1024;
/// Largest line of the stream of uplinks in bytes, without its newline.
pub const LINE_BYTES_MAX: usize = 4096;
/// Most gateways of an uplink beside the one that heard it best.
pub const OTHERS_MAX: usize = 15;
/// Largest FRMPayload in bytes (LoRaWAN Regional Parameters: 242 at the fastest rates).
pub const PAYLOAD_BYTES_MAX: usize = 242;
/// Largest body of a downlink in bytes.
pub const DOWNLINK_BODY_BYTES_MAX: usize = 2048;
/// Longest id of a downlink in bytes.
pub const DOWNLINK_ID_BYTES_MAX: usize = 64;
/// Largest value below [`STATE`] in bytes.
pub const STATE_VALUE_BYTES_MAX: usize = 64 * 1024;
/// Longest key below [`STATE`] in bytes.
pub const STATE_KEY_BYTES_MAX: usize = 64;
/// Most keys of one tenant.
pub const STATE_KEYS_MAX: usize = 256;
/// Largest answer to anything but a configuration or a state value, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest `host:port` in bytes.
pub const ADDRESS_BYTES_MAX: usize = 262;
/// Longest time a client waits for the answer to one request, in milliseconds.
pub const REQUEST_MS_MAX: u64 = 10_000;
