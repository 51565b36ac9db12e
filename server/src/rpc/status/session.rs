//! How the errors of the session storage become statuses.

use std::time::Duration;

use charlstm_engine::ImportError;
use charlstm_store::session::{
    EvictionReason, NameError, RecordError, SealError, SessionError, SessionId,
};
use tonic::{Code, Status};

use super::{
    full, internal, invalid, quota, refused, refused_with, shared_storage_unavailable, unavailable,
    unavailable_with,
};

/// A session becomes free when the generation in it ends; a second is the time
/// of some hundred characters.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Returns the status of an id that is not valid.
pub(in crate::rpc) fn bad_session_id(field: &str, error: &NameError) -> Status {
    invalid(field, error.to_string())
}

/// Returns the status of a session that cannot be used.
pub(in crate::rpc) fn session_error(id: &SessionId, error: &SessionError) -> Status {
    about(&format!("session {id}: "), error)
}

/// Returns the status of an error that concerns no particular session.
pub(in crate::rpc) fn session_store_error(error: &SessionError) -> Status {
    about("", error)
}

fn about(session: &str, error: &SessionError) -> Status {
    let text = format!("{session}{error}");
    match error {
        SessionError::Unknown => refused(Code::NotFound, "SESSION_NOT_FOUND", text),
        SessionError::Evicted(reason) => refused(Code::NotFound, eviction(*reason), text),
        SessionError::Busy { replica, .. } => {
            let replica = replica.as_deref().unwrap_or_default();
            refused_with(Code::Aborted, "SESSION_BUSY", text, by(replica))
        }
        SessionError::PositionMismatch {
            expected: _,
            position,
            last_call_position,
        } => {
            let positions = positions(*position, *last_call_position);
            let code = Code::FailedPrecondition;
            refused_with(code, "POSITION_MISMATCH", text, positions)
        }
        SessionError::UnknownRevision(_) => {
            refused(Code::FailedPrecondition, "SESSION_OTHER_REVISION", text)
        }
        SessionError::Full => full("TOO_MANY_SESSIONS", text, RETRY_AFTER),
        SessionError::OwnerLimit { .. } => quota(text, Some(RETRY_AFTER)),
        SessionError::Exists => refused(Code::AlreadyExists, "SESSION_EXISTS", text),
        SessionError::ModelRetired(_) => refused(Code::NotFound, "MODEL_GONE", text),
        SessionError::ModelInUse { .. } => refused(Code::FailedPrecondition, "MODEL_IN_USE", text),
        SessionError::Deleted => refused(Code::Aborted, "SESSION_DELETED", text),
        SessionError::Fenced { replica } => {
            let replica = replica.as_deref().unwrap_or_default();
            refused_with(Code::Aborted, "SESSION_FENCED", text, by(replica))
        }
        SessionError::LeaseExpired { position } => {
            let position = [("position", position.to_string())];
            unavailable_with("STORAGE_UNAVAILABLE", text, RETRY_AFTER, position)
        }
        SessionError::Record(RecordError::Format(_)) => {
            refused(Code::FailedPrecondition, "SESSION_OTHER_FORMAT", text)
        }
        SessionError::Record(_) => internal(&text),
        // The cause is in the log: it may name paths.
        SessionError::Unavailable(error) => unavailable(
            "STORAGE_UNAVAILABLE",
            format!(
                "{session}the session store cannot accept changes, see the server's log; \
                 all sessions are at their last commit; retry in {} ms",
                error.retry_after.as_millis()
            ),
            error.retry_after,
        ),
        SessionError::CommitUnknown => unavailable(
            "COMMIT_UNKNOWN",
            format!("{text}; repeat the call with expected_position"),
            RETRY_AFTER,
        ),
        SessionError::Stopping => refused(Code::Unavailable, "SERVER_STOPPING", text),
    }
}

/// Metadata with the positions that a client needs to continue or to repeat.
pub(super) fn positions(position: u64, last_call_position: u64) -> [(&'static str, String); 2] {
    [
        ("position", position.to_string()),
        ("last_call_position", last_call_position.to_string()),
    ]
}

/// Metadata that names the replica which has the session; empty for this one.
fn by(replica: &str) -> [(&'static str, String); 1] {
    [("replica", replica.to_owned())]
}

/// The reason in `ErrorInfo` of an evicted session.
fn eviction(reason: EvictionReason) -> &'static str {
    match reason {
        EvictionReason::Idle => "SESSION_EVICTED_IDLE",
        EvictionReason::Capacity => "SESSION_EVICTED_CAPACITY",
        EvictionReason::Restart => "SESSION_LOST_RESTART",
        EvictionReason::ModelGone => "SESSION_EVICTED_MODEL_GONE",
        EvictionReason::Damaged => "SESSION_DAMAGED",
    }
}

/// Returns the status of bytes that are not an exported session.
pub(in crate::rpc) fn invalid_export(error: &SealError) -> Status {
    invalid("data", error.to_string())
}

/// Returns the status of a session that cannot be imported.
pub(in crate::rpc) fn import_error(error: &ImportError) -> Status {
    let text = error.to_string();
    match error {
        ImportError::StateMismatch => invalid("data", text),
        ImportError::ModelMissing(_) => {
            refused(Code::FailedPrecondition, "SESSION_MODEL_GONE", text)
        }
        ImportError::ModelDiffers(_) => {
            refused(Code::FailedPrecondition, "SESSION_OTHER_MODEL", text)
        }
        ImportError::PrecisionUnavailable(_) => {
            refused(Code::FailedPrecondition, "PRECISION_UNAVAILABLE", text)
        }
        ImportError::Session { id, error } => session_error(id, error),
        ImportError::Unavailable(_) => shared_storage_unavailable(text),
        ImportError::Internal(error) => internal(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn a_session_beyond_the_quota_of_its_principal_has_the_details_of_a_quota() {
        let id = SessionId::new("tale").unwrap();
        let status = session_error(&id, &SessionError::OwnerLimit { limit: 2 });
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "QUOTA");
        assert!(details.retry_info().is_some());
        let violations = &details.quota_failure().unwrap().violations;
        assert_eq!(violations[0].subject, "principal");
    }
}
