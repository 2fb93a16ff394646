//! Signs of life: what lets a member show later that it really heard the node for whose sake it refused others.
//!
//! Renewals and their answers are authenticated by their connection and not signed: forty thousand signatures a second are more than a witness can
//! check. So that a witness cannot make up renewals of a dead holder, every datagram with a claim or a renewal reveals one more link of a hash chain
//! (L. Lamport, "Password authentication with insecure communication", 1981) whose end the sender signed: [`LifeAnchor`]. A link is 80 bits of
//! SHA-256, one chain per pair of nodes and direction; whoever has the newest link can show it to anybody, nobody can guess the next.
//!
//! - A claim or renewal without a link newer than all before binds nobody: it is dropped ([`Heard::take`]). One that was overtaken on its way is
//!   as if it were lost: a promise that it prolonged could not be shown, and its member would be convicted.
//! - Whoever refuses custody because of a promise shows the newest link that it heard ([`Shown`]), within the signed refusal.
//! - [`super::audit`] convicts whoever goes on refusing for more than a ttl with the same link, or with none.

use contracts::envelope::{Envelope, Invalid, Statement};
use contracts::ids::NodeId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::statement::{MemberClock, SEQ_MAX};

/// Bytes of a link.
pub(super) const LINK_BYTES: usize = 10;
/// Links of one chain: at a renewal every 250 ms it lasts four minutes.
pub const CHAIN_LINKS: u16 = 1_024;
/// Datagrams in a row that may be lost before a chain is given up: what one datagram can cost to check.
const GAP_MAX: u16 = 64;
/// Links before the newest that are told from those of another chain.
const WINDOW: u16 = 64;

pub(super) type Link = [u8; LINK_BYTES];

/// The link before `link`.
fn before(link: &Link) -> Link {
    let digest = Sha256::new().chain_update(b"antirio life").chain_update(link).finalize();
    let mut before = [0; LINK_BYTES];
    before.copy_from_slice(&digest[..LINK_BYTES]);
    before
}

/// The link `steps` before `link`.
fn back(link: Link, steps: u16) -> Link {
    (0..steps).fold(link, |link, _| before(&link))
}

/// One link on its way: `index` links after the anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    /// 1 to [`CHAIN_LINKS`].
    pub(super) index: u16,
    pub(super) link: Link,
}

/// "Links that lead to `end` are mine, and meant for `to`." Signed by the node whose signs of life they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifeAnchor {
    pub to: NodeId,
    /// The link before the first: 20 hexadecimal digits.
    pub end: String,
    pub clock: MemberClock,
}

impl Statement for LifeAnchor {
    const TYPE: &'static str = "application/vnd.antirio.life-anchor.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless(read_link(&self.end).is_some(), "end", "20 hexadecimal digits")?;
        Invalid::unless(self.clock.ms <= SEQ_MAX, "clock", "a number is at most 2^53 - 1")
    }
}

fn read_link(text: &str) -> Option<Link> {
    let mut link = [0; LINK_BYTES];
    hex::decode_to_slice(text, &mut link).ok().map(|()| link)
}

/// The newest sign of life that a member heard of another, shown within a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// A signed [`LifeAnchor`].
    pub anchor: Envelope,
    pub index: u16,
    /// 20 hexadecimal digits.
    pub link: String,
}

/// A sign of life that was checked: when its chain was begun by the clock of whose it is, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proven {
    pub(super) began: MemberClock,
    pub(super) index: u16,
}

impl Proven {
    /// Of two signs of life of one boot of a node.
    pub(super) fn is_after(&self, other: &Self) -> bool {
        (self.began.ms, self.index) > (other.began.ms, other.index)
    }
}

impl Shown {
    /// Checks that it is a sign of life of `of`, meant for `to`.
    pub(super) fn check(&self, of: NodeId, to: NodeId) -> Option<Proven> {
        let verified = self.anchor.verify_signed_by::<LifeAnchor>(&[of.into()]).ok()?;
        let anchor = verified.statement;
        let is_one = (1..=CHAIN_LINKS).contains(&self.index) && anchor.to == to;
        let (end, link) = (read_link(&anchor.end)?, read_link(&self.link)?);
        (is_one && back(link, self.index) == end).then_some(Proven { began: anchor.clock, index: self.index })
    }
}

/// The chain whose links this node reveals to one other.
#[derive(Debug)]
struct Chain {
    /// The last link first: links are revealed from the end of the list.
    links: Vec<Link>,
    revealed: u16,
    anchor: LifeAnchor,
    /// The other has the anchor, as far as is known here.
    is_known: bool,
}

impl Chain {
    /// From 128 random bits.
    fn new(secret: [u64; 2], to: NodeId, clock: MemberClock) -> Self {
        let mut last = [0; LINK_BYTES];
        let digest = Sha256::new()
            .chain_update(b"antirio life seed")
            .chain_update(secret[0].to_be_bytes())
            .chain_update(secret[1].to_be_bytes());
        last.copy_from_slice(&digest.finalize()[..LINK_BYTES]);
        let links: Vec<Link> =
            std::iter::successors(Some(last), |link| Some(before(link))).take(usize::from(CHAIN_LINKS)).collect();
        let end = links.last().map(before).unwrap_or_default();
        Self { links, revealed: 0, anchor: LifeAnchor { to, end: hex::encode(end), clock }, is_known: false }
    }

    /// The next link; none when all are revealed.
    fn reveal(&mut self) -> Option<Life> {
        let link = self.links.pop()?;
        self.revealed += 1;
        Some(Life { index: self.revealed, link })
    }
}

/// What a sign of life is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Newer than all heard before.
    Fresh,
    /// Heard before, or overtaken.
    Stale,
    /// Of no chain that is known here.
    Unknown,
}

/// What was heard of another's chain.
#[derive(Debug)]
struct Heard {
    anchor: Envelope,
    /// Index 0 and the end before the first.
    newest: Life,
}

impl Heard {
    /// None if the anchor is not one of `from` for `me`.
    fn new(anchor: Envelope, from: NodeId, me: NodeId) -> Option<Self> {
        let verified = anchor.verify_signed_by::<LifeAnchor>(&[from.into()]).ok()?;
        let end = read_link(&verified.statement.end).filter(|_| verified.statement.to == me)?;
        Some(Self { anchor, newest: Life { index: 0, link: end } })
    }

    fn take(&mut self, life: Life) -> Taken {
        if life.index > CHAIN_LINKS || life.index == 0 {
            return Taken::Unknown;
        }
        if let Some(ahead) = life.index.checked_sub(self.newest.index).filter(|ahead| *ahead > 0) {
            if ahead > GAP_MAX || back(life.link, ahead) != self.newest.link {
                return Taken::Unknown;
            }
            self.newest = life;
            return Taken::Fresh;
        }
        let behind = self.newest.index - life.index;
        let is_of_this_chain = behind >= WINDOW || back(self.newest.link, behind) == life.link;
        if is_of_this_chain { Taken::Stale } else { Taken::Unknown }
    }

    /// None before the first link.
    fn show(&self) -> Option<Shown> {
        let Life { index, link } = self.newest;
        (index > 0).then(|| Shown { anchor: self.anchor.clone(), index, link: hex::encode(link) })
    }
}

/// Links that a chain has at least when a parcel of datagrams begins.
const LINKS_LEFT_MIN: usize = 16;

/// Both directions between this node and another.
#[derive(Debug, Default)]
pub(super) struct Lives {
    told: Option<Chain>,
    heard: Option<Heard>,
}

impl Lives {
    /// The anchor of the chain whose links come next, if the other may not know it. `secret` gives 128 random bits.
    pub(super) fn anchor(&mut self, to: NodeId, clock: MemberClock, secret: impl FnOnce() -> [u64; 2]) -> Option<&LifeAnchor> {
        if self.told.as_ref().is_none_or(|chain| chain.links.len() < LINKS_LEFT_MIN) {
            self.told = Some(Chain::new(secret(), to, clock));
        }
        self.told.as_ref().filter(|chain| !chain.is_known).map(|chain| &chain.anchor)
    }

    pub(super) fn reveal(&mut self) -> Option<Life> {
        self.told.as_mut().and_then(Chain::reveal)
    }

    /// The other answered: it can check the links of this chain.
    pub(super) fn note_answer(&mut self) {
        if let Some(chain) = self.told.as_mut().filter(|chain| chain.revealed > 0) {
            chain.is_known = true;
        }
    }

    /// The other cannot check the links of this chain: the next are of a new one.
    pub(super) fn give_up(&mut self) {
        self.told = self.told.take().filter(|chain| chain.revealed == 0);
    }

    /// False if it is no anchor of `from` for `me`. The same one again changes nothing.
    pub(super) fn hear_anchor(&mut self, anchor: Envelope, from: NodeId, me: NodeId) -> bool {
        if self.heard.as_ref().is_some_and(|heard| heard.anchor == anchor) {
            return true;
        }
        let heard = Heard::new(anchor, from, me);
        let is_one = heard.is_some();
        self.heard = heard.or(self.heard.take());
        is_one
    }

    pub(super) fn take(&mut self, life: Life) -> Taken {
        self.heard.as_mut().map_or(Taken::Unknown, |heard| heard.take(life))
    }

    pub(super) fn show(&self) -> Option<Shown> {
        self.heard.as_ref().and_then(Heard::show)
    }
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
