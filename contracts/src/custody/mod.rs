//! Custody of a group of devices: a majority lease with epochs. Who may serve the group now?
//!
//! [`Machine`] is the whole protocol of one member for one group as a pure function of events and time. A driver feeds it
//! messages, wake-ups and commands, and carries out the [`Effect`]s **in order**: what follows a [`Effect::Persist`] may
//! happen only when that record is synced to disk.
//!
//! # The rules
//! 1. *Vote.* One vote per epoch per member, only upwards, synced before it leaves (S2). A vote ends whatever the member held or
//!    promised for lower epochs (S4) and is itself a promise for `ttl` from receipt of the claim (S5).
//! 2. *Renew.* The holder renews every ttl/4, every ttl/12 while no majority has answered. A member promises not to vote for
//!    another for `ttl` if epoch and sender are those it voted for (S6) and the epoch was not released, or if the renewal
//!    brings the certificate of a higher epoch, or of the very epoch in which it voted for a loser (L6; whom it stands by is synced
//!    first, S12). Answers echo `seq` (S1); a refusal names `voted_epoch` (L4) and when to ask again.
//! 3. *Hold.* A promise counts from the sending of the very request that the answer echoes, claims included (S7), for
//!    0.8 ttl (clocks within 10 %: S8). The holder's own vote is a promise like the others (S9). Without a majority the
//!    node is fenced and that epoch is over for it (L1).
//! 4. *Ask, then claim.* An ask changes nothing anywhere (L2). After yes from a majority the candidate votes for itself and claims
//!    1 + the highest epoch that any answer named. A claim not complete within `hold` of its sending is dead. The next try comes
//!    after a random delay; of two that vote against each other the later in the member list stays silent for one ttl (L3).
//! 5. *Restart.* For one ttl after start a member votes for nobody but its `voted_for`, its own candidacy included (S3). With a
//!    disk that was lost or restored it first hears the epochs of all possible candidates.
//! 6. *Release.* Applied only if epoch and sender are those voted for (S11); then for one ttl from receipt only the successor is
//!    granted, after that anybody (L5). It needs no lease wait.
//! 7. *Epoch on what acts*, 8. *Abstain*, 9. *Warm* concern drivers; a candidate without a majority just stays where it is.
//!
//! No contract makes a holder by itself (S10): a contract only says who may be voted for first where nobody was ever voted for.
//! That member then asks and claims epoch 1 like any other, so even the first custody has a certificate.
//!
//! # What is where
//! - [`Config`], [`Timing`], [`MemberIndex`], [`MemberSet`] — the group as one member sees it
//! - [`Message`], [`Refusal`] — what members tell each other
//! - [`Durable`], [`Disk`] — what must survive a restart
//! - [`Event`], [`Effect`], [`Machine`] — the protocol
//! - [`Rules`], [`Mark`] — one switch per pedantic clause, so that a checker can show that each is needed
//!
//! # Choices where the rules leave room
//! - A restarted process never resumes an epoch, it claims the next one (others grant their `voted_for` at once), so a
//!   pair of epoch and `seq` is never used twice, and an answer to a former process cannot count for this one.
//! - A successor that applied a release claims without asking: the release is the yes.
//! - A restored member that is itself a candidate also hears so many other members that every majority of its own lost
//!   candidacies has one among them.
//! - A certificate of the very epoch in which a member voted for a loser, or of which a restored disk does not know the vote, binds the
//!   member to the winner. It is a promise and no vote: `voted_for` stays, nothing is granted, and one vote per epoch remains true on paper.
//!   What it must end is the member's freedom towards whom it voted for, itself above all, across restarts too (S12): that
//!   freedom ("voted_for is granted at once") rests on promises being for nobody else.
//! - Of a restored disk only the number of the epoch is believed: it may lack who was elected or released there.
//! - A claim is repeated every ttl/12 under the same epoch with a new `seq`; granting it again is a renewal of the same vote.
//!
//! # Not here yet
//! The member list of a machine is fixed (S13, a change of the list by the holder's own claim, granted by majorities of both
//! lists). Nothing in the epochs stands against it: they belong to the group, not to a list, and only rise.

mod answering;
mod candidacy;
mod config;
mod lease;
mod machine;
mod message;
mod rules;

pub use config::{Config, Error, MEMBERS_MAX, MEMBERS_MIN, MemberIndex, MemberSet, TTL_MAX, TTL_MIN, Timing};
pub use machine::{Disk, DropReason, Durable, Effect, Event, Machine, Readiness, Released, RoleName, View};
pub use message::{EPOCH_MAX, Message, Refusal};
pub use rules::{Mark, Rules};
