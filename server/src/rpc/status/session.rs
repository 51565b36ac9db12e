//! What the errors of the session store are on the wire.

use std::time::Duration;

use tonic::{Code, Status};

use super::{full, internal, invalid, refused};
use charlstm_engine::generation::ImportError;
use charlstm_engine::sessions::id::SessionIdError;
use charlstm_engine::sessions::store::SessionError;
use charlstm_engine::sessions::{Reason, SessionId};

/// A session is free again when the text under way in it is over; a second is
/// the time of some hundred characters.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A name that no session can have.
pub(in crate::rpc) fn bad_session_id(field: &str, error: &SessionIdError) -> Status {
    invalid(field, error.to_string())
}

/// A session that cannot be had.
pub(in crate::rpc) fn session_error(id: &SessionId, error: SessionError) -> Status {
    let text = format!("session {id}: {error}");
    match error {
        SessionError::Unknown => refused(Code::NotFound, "SESSION_NOT_FOUND", text),
        SessionError::Evicted(reason) => refused(Code::NotFound, let_go(reason), text),
        SessionError::Busy { .. } => refused(Code::Aborted, "SESSION_BUSY", text),
        SessionError::PositionMismatch { .. } => {
            refused(Code::FailedPrecondition, "POSITION_MISMATCH", text)
        }
        SessionError::Full => full("TOO_MANY_SESSIONS", text, RETRY_AFTER),
        SessionError::Exists => refused(Code::AlreadyExists, "SESSION_EXISTS", text),
    }
}

/// The reason in `ErrorInfo` of a session that was let go.
fn let_go(reason: Reason) -> &'static str {
    match reason {
        Reason::Idle => "SESSION_EVICTED_IDLE",
        Reason::Capacity => "SESSION_EVICTED_CAPACITY",
        Reason::Restart => "SESSION_LOST_RESTART",
    }
}

/// Bytes that cannot be made a session.
pub(in crate::rpc) fn import_error(error: &ImportError) -> Status {
    let text = error.to_string();
    match error {
        ImportError::Snapshot(_) | ImportError::Unfit => invalid("data", text),
        ImportError::ModelMissing(_) => {
            refused(Code::FailedPrecondition, "SESSION_MODEL_GONE", text)
        }
        ImportError::ModelDiffers(_) => {
            refused(Code::FailedPrecondition, "SESSION_OTHER_MODEL", text)
        }
        ImportError::Session { id, error } => session_error(id, *error),
        ImportError::Internal(error) => internal(error),
    }
}
