//! When to ping a peer, when to dial it anew and when to raise the alarm. Pure: the driver is in `endpoint`.
//!
//! Rule 9 of custody: every pair of members keeps a connection with a ping per ttl; after two unanswered pings the peer is dialled
//! anew *beside* the old connection and the newest wins. QUIC's own idle timeout is far too slow for that.

use contracts::time::{BootTime, Millis};

/// So many pings without an answer make a connection suspect.
pub const UNANSWERED_PINGS_MAX: u32 = 2;

/// Names a connection within one endpoint; later ones have higher numbers.
pub type ConnectionNumber = u64;

/// The state of one peer that is kept warm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    every: Millis,
    newest: Option<ConnectionNumber>,
    unanswered: u32,
    dialing: bool,
    missing: bool,
    wake_at: BootTime,
    sequence: u64,
}

/// What happened to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The interval changed.
    IntervalSet(Millis),
    /// A connection stands, whoever dialled it.
    Connected(ConnectionNumber),
    /// Connections ended; this one is the newest of those that remain.
    Remaining(Option<ConnectionNumber>),
    /// A pong on this connection.
    Answered(ConnectionNumber),
    DialFailed,
    /// The time asked for has come (or any other).
    TimePassed,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Dial,
    Ping { connection: ConnectionNumber, sequence: u64 },
    MissingChanged(bool),
}

impl Warm {
    /// A peer not yet dialled; the first [`Event::TimePassed`] or [`Event::Connected`] starts it.
    #[must_use]
    pub fn new(every: Millis, newest: Option<ConnectionNumber>, now: BootTime) -> Self {
        Self { every: every.max(Millis(1)), newest, unanswered: 0, dialing: false, missing: false, wake_at: now, sequence: 0 }
    }

    /// When [`Event::TimePassed`] is wanted.
    #[must_use]
    pub fn wake_at(&self) -> BootTime {
        self.wake_at
    }

    /// Whether the newest connection can be used without dialling first.
    #[must_use]
    pub fn is_answering(&self) -> bool {
        self.newest.is_some() && self.unanswered < UNANSWERED_PINGS_MAX
    }

    /// Takes one event; gives what is to be done, in order.
    pub fn apply(&mut self, event: Event, now: BootTime) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::IntervalSet(every) => {
                self.every = every.max(Millis(1));
                self.wake_at = self.wake_at.min(now + self.every);
            }
            Event::Connected(connection) => {
                self.newest = Some(connection);
                self.dialing = false;
                self.unanswered = 0;
                // Pinged at once; only the answer ends the alarm, since a peer that refuses us lets the handshake end well too.
                self.wake_at = now;
            }
            Event::Remaining(newest) => {
                if newest != self.newest {
                    self.newest = newest;
                    self.unanswered = 0;
                    // Without any connection the next dial waits for a whole interval: no storm of dials to a peer that hangs up.
                    self.wake_at = if newest.is_some() { now } else { now + self.every };
                    if newest.is_none() {
                        self.set_missing(true, &mut effects);
                    }
                }
            }
            Event::Answered(connection) => {
                if self.newest == Some(connection) {
                    self.unanswered = 0;
                    self.set_missing(false, &mut effects);
                }
            }
            Event::DialFailed => {
                self.dialing = false;
                if !self.is_answering() {
                    self.set_missing(true, &mut effects);
                }
            }
            Event::TimePassed => {
                if now >= self.wake_at {
                    self.ping_or_dial(now, &mut effects);
                }
            }
        }
        effects
    }

    fn ping_or_dial(&mut self, now: BootTime, effects: &mut Vec<Effect>) {
        self.wake_at = now + self.every;
        if self.unanswered >= UNANSWERED_PINGS_MAX {
            self.set_missing(true, effects);
        }
        if !self.is_answering() && !self.dialing {
            self.dialing = true;
            effects.push(Effect::Dial);
        }
        if let Some(connection) = self.newest {
            self.unanswered = self.unanswered.saturating_add(1);
            self.sequence += 1;
            effects.push(Effect::Ping { connection, sequence: self.sequence });
        }
    }

    fn set_missing(&mut self, missing: bool, effects: &mut Vec<Effect>) {
        if self.missing != missing {
            self.missing = missing;
            effects.push(Effect::MissingChanged(missing));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Millis = Millis(100);

    fn step(warm: &mut Warm, event: Event, now: u64) -> Vec<Effect> {
        warm.apply(event, BootTime(now))
    }

    #[test]
    fn dials_at_once_and_pings_what_answers() {
        let mut warm = Warm::new(EVERY, None, BootTime(0));
        assert_eq!(step(&mut warm, Event::TimePassed, 0), [Effect::Dial]);
        assert_eq!(step(&mut warm, Event::TimePassed, 100), [], "one dial at a time");
        assert_eq!(step(&mut warm, Event::Connected(1), 110), []);
        for round in 0..10 {
            let now = 110 + round * 100;
            assert_eq!(step(&mut warm, Event::TimePassed, now), [Effect::Ping { connection: 1, sequence: round + 1 }]);
            assert_eq!(step(&mut warm, Event::Answered(1), now + 1), []);
        }
    }

    #[test]
    fn two_unanswered_pings_dial_beside_the_old_connection() {
        let mut warm = Warm::new(EVERY, Some(1), BootTime(0));
        assert_eq!(step(&mut warm, Event::TimePassed, 0), [Effect::Ping { connection: 1, sequence: 1 }]);
        assert_eq!(step(&mut warm, Event::TimePassed, 99), []);
        assert_eq!(step(&mut warm, Event::TimePassed, 100), [Effect::Ping { connection: 1, sequence: 2 }]);
        assert!(!warm.is_answering());
        let third = step(&mut warm, Event::TimePassed, 200);
        assert_eq!(third, [Effect::MissingChanged(true), Effect::Dial, Effect::Ping { connection: 1, sequence: 3 }]);
        assert_eq!(step(&mut warm, Event::Connected(2), 210), []);
        assert_eq!(step(&mut warm, Event::Answered(1), 211), [], "the old one no longer matters");
        assert_eq!(step(&mut warm, Event::TimePassed, 211), [Effect::Ping { connection: 2, sequence: 4 }]);
        assert_eq!(step(&mut warm, Event::Answered(2), 212), [Effect::MissingChanged(false)]);
        assert!(warm.is_answering());
    }

    #[test]
    fn a_peer_that_cannot_be_dialled_is_missing_and_tried_again() {
        let mut warm = Warm::new(EVERY, None, BootTime(0));
        assert_eq!(step(&mut warm, Event::TimePassed, 0), [Effect::Dial]);
        assert_eq!(step(&mut warm, Event::DialFailed, 50), [Effect::MissingChanged(true)]);
        assert_eq!(step(&mut warm, Event::TimePassed, 60), []);
        assert_eq!(step(&mut warm, Event::TimePassed, 100), [Effect::Dial]);
        assert_eq!(step(&mut warm, Event::Connected(1), 120), []);
        assert_eq!(step(&mut warm, Event::Answered(1), 121), [Effect::MissingChanged(false)]);
        assert_eq!(step(&mut warm, Event::Remaining(None), 130), [Effect::MissingChanged(true)]);
        assert_eq!(step(&mut warm, Event::TimePassed, 130), [], "hanging up does not make us dial faster");
        assert_eq!(step(&mut warm, Event::TimePassed, 230), [Effect::Dial]);
    }
}
