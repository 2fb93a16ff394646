//! What a node finds of itself, and what follows from it. Pure.

use contracts::custody::Readiness;
use contracts::time::{BootTime, Millis};

/// No gateway that is there is silent for so long: forwarders pull every 5 to 30 s.
pub const SILENCE_MAX: Millis = Millis::from_secs(45);
/// The other party tells every 5 s which devices it heard; if it was told in this time, it has a radio.
pub const HEARD_THERE: Millis = Millis::from_secs(45);
/// Who handed over for its radio or containers does not do it again before. What moves custody twice in so short a time helps nobody.
pub const PAUSE: Millis = Millis::from_secs(600);
/// The other party was away or held nothing for so long: then a node without radio or containers is better than nobody.
pub const ALONE: Millis = Millis::from_secs(3);

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It takes no readings.
    Disk,
    /// Gateways are silent, and the other party hears devices.
    Radio,
    /// They end again and again.
    Containers,
}

/// What there is to see at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub is_writable: bool,
    /// Since the last datagram of any gateway; absent if none ever came.
    pub silence: Option<Millis>,
    /// Since the other party told that it hears devices; absent if it never did.
    pub heard_there: Option<Millis>,
    /// The containers end again and again.
    pub is_failing: bool,
    /// This node holds custody.
    pub holds: bool,
    pub other_is_there: bool,
    /// This node voted for the other party last.
    pub other_holds: bool,
}

/// What an operator should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    Began(Finding),
    Over(Finding),
    /// It lasts, but the other party is away, holds nothing, or gave custody back.
    Borne(Finding),
}

/// What follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub readiness: Readiness,
    /// This node may say that it is level and be given custody back.
    pub is_fit: bool,
    /// Custody is to be handed over.
    pub release: bool,
    pub news: Vec<News>,
}

/// What a node remembers of its looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    begun: BootTime,
    was_writable: bool,
    given_up: Option<GivenUp>,
    /// Nothing but a full disk is handed over for before.
    paused_until: BootTime,
}

/// Custody was handed over for this, which lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GivenUp {
    finding: Finding,
    /// The release has left: this node held no more.
    is_gone: bool,
    /// Since when the other party is away or holds nothing.
    alone_since: Option<BootTime>,
}

impl Check {
    /// A process that begins now: gateways have time to be heard.
    #[must_use]
    pub const fn new(now: BootTime) -> Self {
        Self { begun: now, was_writable: true, given_up: None, paused_until: now }
    }

    /// What is to be done now.
    pub fn look(&mut self, seen: &Seen, now: BootTime) -> Verdict {
        let mut news = Vec::new();
        if std::mem::replace(&mut self.was_writable, seen.is_writable) != seen.is_writable {
            news.push(if seen.is_writable { News::Over(Finding::Disk) } else { News::Began(Finding::Disk) });
        }
        if let Some(given_up) = self.given_up.take() {
            match self.goes_on(given_up, seen, now) {
                Ok(given_up) => self.given_up = Some(given_up),
                Err(over) => news.push(over),
            }
        } else if let Some(finding) = self.gives_up(seen, now) {
            news.push(News::Began(finding));
            self.given_up = Some(GivenUp { finding, is_gone: false, alone_since: None });
            self.paused_until = now + PAUSE;
        }
        let readiness = match (seen.is_writable, self.given_up) {
            (false, _) => Readiness::Unready,
            (true, Some(_)) => Readiness::SuccessorOnly,
            (true, None) => Readiness::Ready,
        };
        let is_fit = readiness == Readiness::Ready;
        Verdict { readiness, is_fit, release: !is_fit && seen.holds && seen.other_is_there, news }
    }

    /// Whether what was handed over for is over, or nobody else is there to hold.
    fn goes_on(&self, mut given_up: GivenUp, seen: &Seen, now: BootTime) -> Result<GivenUp, News> {
        let finding = given_up.finding;
        let lasts = match finding {
            Finding::Disk => !seen.is_writable,
            Finding::Radio => self.is_silent(seen, now),
            Finding::Containers => seen.is_failing,
        };
        if !lasts {
            return Err(News::Over(finding));
        }
        let is_held = seen.holds || (seen.other_is_there && seen.other_holds);
        given_up.alone_since = (!is_held).then(|| given_up.alone_since.unwrap_or(now));
        let was_left_alone = given_up.alone_since.is_some_and(|since| now.since(since) >= ALONE);
        if was_left_alone || (seen.holds && given_up.is_gone) {
            return Err(News::Borne(finding));
        }
        given_up.is_gone |= !seen.holds;
        Ok(given_up)
    }

    /// Why custody is to be handed over beyond the disk.
    fn gives_up(&self, seen: &Seen, now: BootTime) -> Option<Finding> {
        if !(seen.is_writable && seen.holds && seen.other_is_there) || now < self.paused_until {
            return None;
        }
        let hears = seen.heard_there.is_some_and(|since| since <= HEARD_THERE);
        if hears && self.is_silent(seen, now) {
            return Some(Finding::Radio);
        }
        seen.is_failing.then_some(Finding::Containers)
    }

    fn is_silent(&self, seen: &Seen, now: BootTime) -> bool {
        seen.silence.unwrap_or_else(|| now.since(self.begun)) > SILENCE_MAX
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
