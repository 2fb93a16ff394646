//! The service's errors as problem documents.

use axum::http::StatusCode;
use contracts::evidence::judge::Refused;
use contracts::ledger::Rejected;
use kit::problem::Problem;

use crate::service::Error;
use crate::store::RecordsError;

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        use StatusCode as S;
        let refuse = |status, name, title| Self::new(status, name, title).detail(&error);
        match error {
            Error::Statement(statement) => statement.into(),
            Error::NotFound(_) => Self::not_found(error),
            Error::PathMismatch { field } => Self::invalid(field, error),
            Error::UnknownNode(_) => refuse(S::UNPROCESSABLE_ENTITY, "node-not-registered", "a node is not registered"),
            Error::OwnerMismatch { .. } => {
                refuse(S::FORBIDDEN, "owner-mismatch", "the node belongs to another owner").field("owner")
            }
            Error::StaleRecord { .. } => {
                refuse(S::CONFLICT, "stale-record", "a newer record is registered").field("record_epoch")
            }
            Error::OwnerChange => Self::conflict(error).field("owner"),
            Error::TooManyNodes => refuse(S::TOO_MANY_REQUESTS, "limit-reached", "a limit of the arbitrator is reached"),
            Error::OtherArbitrator(_) => {
                refuse(S::UNPROCESSABLE_ENTITY, "other-arbitrator", "the statement is for another arbitrator").field("arbitrator")
            }
            Error::Expired(_) => {
                refuse(S::UNPROCESSABLE_ENTITY, "expired-statement", "the statement is not valid any more").field("valid_until")
            }
            Error::NotYetValid(_) => {
                refuse(S::UNPROCESSABLE_ENTITY, "not-yet-valid", "the term is still to begin").field("valid_from")
            }
            Error::Stranger(_) => refuse(S::FORBIDDEN, "wrong-signer", "somebody else has to sign this"),
            Error::OneOwnerMajority => {
                refuse(S::UNPROCESSABLE_ENTITY, "one-owner-majority", "no owner may have a majority of the members")
                    .field("witnesses")
            }
            Error::GroupTaken(_) => {
                refuse(S::CONFLICT, "group-taken", "another contract covers the group or a device").field("devices")
            }
            Error::Money(ref rejected) => money(rejected),
            Error::NotAnOperator(_) => {
                refuse(S::FORBIDDEN, "not-an-operator", "only operators sign orders of credit").field("operator")
            }
            Error::Refused(refused) => refused_evidence(refused),
            Error::Certificate(_) => {
                refuse(S::UNPROCESSABLE_ENTITY, "bad-certificate", "the custody certificate proves nothing").field("certificate")
            }
            Error::TooMuchEvidence(_) => refuse(S::TOO_MANY_REQUESTS, "too-much-evidence", "the author added enough already"),
            Error::NotAMember(_) => refuse(S::FORBIDDEN, "not-a-member", "only members of a group may do this"),
            Error::Records(RecordsError::NotTheHolder { .. }) => {
                refuse(S::CONFLICT, "not-the-holder", "only the holder of the present epoch writes ahead").field("epoch")
            }
            Error::Records(RecordsError::Full) => {
                refuse(S::INSUFFICIENT_STORAGE, "records-full", "no room for more records of this group")
            }
            Error::Records(RecordsError::Store(ref cause)) | Error::Store(ref cause) => {
                tracing::error!(error = cause as &dyn std::error::Error, "the store failed");
                Self::internal()
            }
        }
    }
}

fn money(rejected: &Rejected) -> Problem {
    match rejected {
        Rejected::Insufficient { .. } => {
            let status = StatusCode::PAYMENT_REQUIRED;
            Problem::new(status, "insufficient-funds", "an account has not enough available").detail(rejected).field("money")
        }
        Rejected::SupplyExceeded => Problem::invalid("amount", rejected),
        Rejected::IdTaken(_)
        | Rejected::SameAccount
        | Rejected::UnknownPending(_)
        | Rejected::NotOpen { .. }
        | Rejected::MoreThanPending { .. }
        | Rejected::PendingExpired { .. }
        | Rejected::NotYetExpired { .. }
        | Rejected::BatchTooLong => {
            tracing::error!(%rejected, "the ledger refused what the rules asked for");
            Problem::internal()
        }
    }
}

fn refused_evidence(refused: Refused) -> Problem {
    let refuse = |status, name, title| Problem::new(status, name, title).detail(&refused);
    match &refused {
        Refused::OtherContract => Problem::invalid("group", refused),
        Refused::Signer { .. } => refuse(StatusCode::FORBIDDEN, "wrong-signer", "somebody else has to sign this"),
        Refused::State(_) => refuse(StatusCode::CONFLICT, "wrong-state", "the contract does not take this now").field("state"),
        Refused::Future { field } | Refused::TooEarly { field } => {
            refuse(StatusCode::UNPROCESSABLE_ENTITY, "bad-time", "a time in the statement cannot be").field(*field)
        }
        Refused::Contradicted { .. } => {
            refuse(StatusCode::CONFLICT, "contradicted", "a witness saw something else").field("epoch")
        }
        Refused::ChallengeOpen | Refused::NoChallengeNow => {
            refuse(StatusCode::CONFLICT, "wrong-state", "the contract does not take this now").field("challenge")
        }
    }
}
