//! Why a step of the market does not succeed, and whether trying again helps.

use contracts::envelope;

use crate::edge2edge::client as peer;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the marketplace")]
    Marketplace(#[source] Box<marketplace::client::Error>),
    #[error("the arbitrator")]
    Arbitrator(#[source] Box<::arbitrator::client::Error>),
    #[error("the other party")]
    Peer(#[source] Box<peer::Error>),
    #[error("a statement")]
    Envelope(#[from] envelope::Error),
    #[error("a match")]
    Introduction(#[from] marketplace::resource::IntroductionError),
    #[error("this node's own rules")]
    Refusal(#[from] crate::arbitrator::Refusal),
    #[error("the content store")]
    Storage(#[from] storage::Error),
    #[error("migration")]
    Migration(#[from] crate::migration::Error),
    #[error("readiness")]
    Readiness(#[from] crate::readiness::Error),
    #[error("a contract")]
    Agreement(#[from] crate::agreements::Error),
    #[error("the directory of nodes")]
    Directory(#[from] crate::directory::Error),
    #[error("a file")]
    File(#[from] std::io::Error),
    /// Trying again changes nothing.
    #[error("{0}")]
    Final(String),
    /// Something is still missing.
    #[error("{0}")]
    NotYet(&'static str),
}

/// Refusals that pass: limits, and records that are on their way.
const PASSING: [&str; 5] = ["too-many-requests", "limit-reached", "node-not-registered", "unavailable", "internal"];

impl Error {
    /// Whether the same step may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Marketplace(error) => error.is_transient() || self.is_passing(),
            Self::Arbitrator(error) => error.is_transient() || self.is_passing(),
            Self::Peer(error) => error.is_transient(),
            Self::Storage(_)
            | Self::Migration(_)
            | Self::Readiness(_)
            | Self::Agreement(_)
            | Self::Directory(_)
            | Self::File(_) => true,
            Self::NotYet(_) => true,
            Self::Envelope(_) | Self::Introduction(_) | Self::Refusal(_) | Self::Final(_) => false,
        }
    }

    fn is_passing(&self) -> bool {
        self.problem().is_some_and(|name| PASSING.contains(&name))
    }

    /// The name of the problem, if somebody refused with one.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Marketplace(error) => match error.as_ref() {
                marketplace::client::Error::Problem(problem) => Some(problem.name()),
                _no_answer => None,
            },
            Self::Peer(error) => match error.as_ref() {
                peer::Error::Refused(problem) => Some(problem.name()),
                peer::Error::Unreachable(_) | peer::Error::Timeout(_) | peer::Error::Answer(_) => None,
            },
            Self::Arbitrator(error) => error.problem(),
            _no_server => None,
        }
    }

    /// With all causes, for people.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

impl From<marketplace::client::Error> for Error {
    fn from(error: marketplace::client::Error) -> Self {
        Self::Marketplace(Box::new(error))
    }
}

impl From<::arbitrator::client::Error> for Error {
    fn from(error: ::arbitrator::client::Error) -> Self {
        Self::Arbitrator(Box::new(error))
    }
}

impl From<peer::Error> for Error {
    fn from(error: peer::Error) -> Self {
        Self::Peer(Box::new(error))
    }
}
