//! The service's errors as problem documents.

use axum::http::StatusCode;
use kit::problem::Problem;

use crate::service::Error;

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let refuse = |status, name, title| Self::new(status, name, title).detail(&error);
        match error {
            Error::Statement(statement) => statement.into(),
            Error::NotFound(_) => Self::not_found(error),
            Error::UnknownNode(_) => {
                refuse(StatusCode::FORBIDDEN, "node-not-registered", "the node is not registered").field("node")
            }
            Error::OwnerMismatch => {
                refuse(StatusCode::FORBIDDEN, "owner-mismatch", "the node belongs to another owner").field("owner")
            }
            Error::NotYours => Self::forbidden(error),
            Error::PathMismatch { .. } => Self::invalid("path", error),
            Error::StaleRecord { .. } => {
                refuse(StatusCode::CONFLICT, "stale-record", "a newer record is registered").field("record_epoch")
            }
            Error::OwnerChange => Self::conflict(error).field("owner"),
            Error::Expired(_) => {
                refuse(StatusCode::UNPROCESSABLE_ENTITY, "expired-statement", "the statement is not valid any more")
                    .field("valid_until")
            }
            Error::TooFarAhead { field, .. } => Self::invalid(field, error),
            Error::Withdrawn => refuse(StatusCode::CONFLICT, "withdrawn-statement", "the statement was withdrawn for ever"),
            Error::TooMany { .. } => {
                refuse(StatusCode::TOO_MANY_REQUESTS, "limit-reached", "a limit of the marketplace is reached")
            }
            Error::MatchOver(_) => refuse(StatusCode::CONFLICT, "match-over", "the match is not held any more"),
            Error::OtherContract => Self::conflict(error),
            Error::ContractMismatch(field) => {
                refuse(StatusCode::UNPROCESSABLE_ENTITY, "contract-mismatch", "the contract is not of this match").field(field)
            }
            Error::EventsGone { .. } => {
                refuse(StatusCode::GONE, "events-gone", "these events are not kept any more").field("Last-Event-ID")
            }
            Error::Store(ref cause) => {
                tracing::error!(error = cause as &dyn std::error::Error, "the store failed");
                Self::internal()
            }
        }
    }
}
