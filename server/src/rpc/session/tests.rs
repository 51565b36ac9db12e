#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use charlstm_engine::generation::{GenerateError, ImportError};
use charlstm_engine::sessions::Reason;
use charlstm_engine::sessions::snapshot::SnapshotError;

fn id() -> SessionId {
    SessionId::new("chat").unwrap()
}

#[test]
fn each_way_a_session_cannot_be_had_has_its_code_and_reason() {
    let mismatch = SessionError::PositionMismatch {
        expected: 1,
        position: 2,
        last_call_position: 0,
    };
    for (error, code, reason) in [
        (SessionError::Unknown, Code::NotFound, "SESSION_NOT_FOUND"),
        (
            SessionError::Evicted(Reason::Idle),
            Code::NotFound,
            "SESSION_EVICTED_IDLE",
        ),
        (
            SessionError::Evicted(Reason::Capacity),
            Code::NotFound,
            "SESSION_EVICTED_CAPACITY",
        ),
        (
            SessionError::Evicted(Reason::Restart),
            Code::NotFound,
            "SESSION_LOST_RESTART",
        ),
        (
            SessionError::Busy { leaving: false },
            Code::Aborted,
            "SESSION_BUSY",
        ),
        (mismatch, Code::FailedPrecondition, "POSITION_MISMATCH"),
        (
            SessionError::Full,
            Code::ResourceExhausted,
            "TOO_MANY_SESSIONS",
        ),
        (SessionError::Exists, Code::AlreadyExists, "SESSION_EXISTS"),
    ] {
        let status = status::session_error(&id(), error);
        assert_eq!(status.code(), code);
        assert!(status.message().starts_with("session chat: "));
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, reason);
    }
}

#[test]
fn overload_tells_when_to_try_again() {
    let retry_after = Duration::from_secs(1);
    let status = status::generate_error(&GenerateError::Overloaded { retry_after }, "prime");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(retry_after));
}

#[test]
fn what_broke_inside_is_not_told_outside() {
    let error = GenerateError::Internal("a secret path".to_owned());
    let status = status::generate_error(&error, "prime");
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("secret"));
}

#[test]
fn bytes_that_are_no_session_are_the_callers_mistake() {
    let status = status::import_error(&ImportError::Snapshot(SnapshotError::Checksum));
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("data: "));
}
