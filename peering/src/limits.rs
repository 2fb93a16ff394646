//! Named bounds on everything a peer can send or make us keep.

use contracts::time::Millis;

/// The protocol spoken over QUIC (RFC 7301 ALPN): one HTTP/1.1 request per bidirectional stream, and datagrams.
pub const ALPN: &[u8] = b"antirio/peer/1";

/// Peers remembered at a time, admitted ones only.
pub const PEERS_MAX: usize = 1_024;
/// Connections kept with one peer: one dialled by each side and their successors while the old ones end.
pub const CONNECTIONS_PER_PEER_MAX: usize = 4;
/// Handshakes in progress with peers not yet known; more are refused before any cryptography.
pub const HANDSHAKES_MAX: usize = 64;
/// Requests that one connection may have open at a time; QUIC itself holds the peer to it.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Bytes in flight on one stream before the sender has to wait.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes in flight on one connection, all its streams together, in each direction.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Buffer of HTTP/1.1 head and body per stream and direction.
pub const HTTP_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Datagrams queued by QUIC per connection and direction.
pub const DATAGRAM_BUFFER_BYTES_MAX: usize = 256 << 10;
/// Datagrams received and not yet taken by the application, of all peers together.
pub const DATAGRAMS_QUEUED_MAX: usize = 1_024;
/// The application's bytes in a datagram where no connection says otherwise: QUIC's smallest packet (1,200, RFC 9000 section 14)
/// less short header, authentication tag, frame header and our kind byte.
pub const DATAGRAM_BYTES_MAX: usize = 1_100;
/// A connection on which the peer said nothing for so long is closed, unless it is the newest one of a peer kept warm.
pub const UNUSED_CONNECTION_MS_MAX: Millis = Millis(60_000);
/// The time a peer has for the head of a request.
pub const REQUEST_HEAD_MS_MAX: Millis = Millis(5_000);

/// What one peer may ask of us; the defaults suit a small gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request's body; longer ones end in 413 Content Too Large.
    pub request_body_bytes_max: usize,
    /// Requests per second and peer; more get 429 Too Many Requests. Twice as many are allowed at once.
    pub requests_per_second_max: u32,
    /// Datagrams per second and peer; more are dropped and counted. Twice as many are allowed at once.
    pub datagrams_per_second_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { request_body_bytes_max: 256 << 20, requests_per_second_max: 2_000, datagrams_per_second_max: 2_000 }
    }
}
