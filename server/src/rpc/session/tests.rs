#![allow(clippy::unwrap_used)]

use std::time::Duration;

use charlstm_engine::{GenerateError, ImportError};
use charlstm_model::decode_step::{ARITHMETIC_REVISION, Precision};
use charlstm_store::session::{
    EvictionReason, ModelVersion, Owner, RecordError, SessionIdentity, SessionSnapshot,
    SessionState, StorageUnavailable,
};
use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use crate::rpc::principal::Quotas;

fn status_of(error: &SessionError) -> Status {
    status::session_error(&SessionId::new("chat").unwrap(), error)
}

#[test]
fn each_reason_that_a_session_cannot_be_used_has_its_own_code_and_name() {
    use SessionError as E;
    let mismatch = E::PositionMismatch {
        expected: 1,
        position: 2,
        last_call_position: 0,
    };
    let busy = |replica: Option<&str>| E::Busy {
        leaving: false,
        replica: replica.map(Into::into),
    };
    let fenced = E::Fenced { replica: None };
    for (error, code, reason) in [
        (E::Unknown, Code::NotFound, "SESSION_NOT_FOUND"),
        (
            E::Evicted(EvictionReason::Idle),
            Code::NotFound,
            "SESSION_EVICTED_IDLE",
        ),
        (
            E::Evicted(EvictionReason::Capacity),
            Code::NotFound,
            "SESSION_EVICTED_CAPACITY",
        ),
        (
            E::Evicted(EvictionReason::Restart),
            Code::NotFound,
            "SESSION_LOST_RESTART",
        ),
        (
            E::Evicted(EvictionReason::ModelGone),
            Code::NotFound,
            "SESSION_EVICTED_MODEL_GONE",
        ),
        (
            E::Evicted(EvictionReason::Damaged),
            Code::NotFound,
            "SESSION_DAMAGED",
        ),
        (busy(None), Code::Aborted, "SESSION_BUSY"),
        (busy(Some("b")), Code::Aborted, "SESSION_BUSY"),
        (mismatch, Code::FailedPrecondition, "POSITION_MISMATCH"),
        (E::Full, Code::ResourceExhausted, "TOO_MANY_SESSIONS"),
        (E::Exists, Code::AlreadyExists, "SESSION_EXISTS"),
        (E::Deleted, Code::Aborted, "SESSION_DELETED"),
        (fenced, Code::Aborted, "SESSION_FENCED"),
        (E::CommitUnknown, Code::Unavailable, "COMMIT_UNKNOWN"),
        (
            E::LeaseExpired { position: 3 },
            Code::Unavailable,
            "STORAGE_UNAVAILABLE",
        ),
        (E::Stopping, Code::Unavailable, "SERVER_STOPPING"),
        (
            E::UnknownRevision(7),
            Code::FailedPrecondition,
            "SESSION_OTHER_REVISION",
        ),
        (
            E::Record(RecordError::Format(9)),
            Code::FailedPrecondition,
            "SESSION_OTHER_FORMAT",
        ),
    ] {
        let status = status_of(&error);
        assert_eq!(status.code(), code);
        assert!(status.message().starts_with("session chat: "));
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, reason);
    }
}

#[test]
fn a_position_mismatch_reports_the_positions_that_the_client_needs() {
    let status = status_of(&SessionError::PositionMismatch {
        expected: 1,
        position: 12,
        last_call_position: 7,
    });
    let details = status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["position"], "12");
    assert_eq!(metadata["last_call_position"], "7");
}

#[test]
fn a_busy_session_reports_the_replica_that_has_it() {
    let status = status_of(&SessionError::Busy {
        leaving: false,
        replica: Some("west".into()),
    });
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["replica"], "west");
}

#[test]
fn an_evicted_session_says_how_to_use_its_id_again() {
    let status = status_of(&SessionError::Evicted(EvictionReason::Idle));
    let message = status.message();
    assert!(message.contains("--session-ttl"), "{message}");
    assert!(
        message.contains("delete it to use its id again"),
        "{message}"
    );
}

#[test]
fn an_unavailable_storage_reports_the_delay_and_hides_the_cause() {
    let retry_after = Duration::from_secs(3);
    let status = status_of(&SessionError::Unavailable(StorageUnavailable {
        retry_after,
        cause: "/secret: no space left".into(),
    }));
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!status.message().contains("secret"));
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "STORAGE_UNAVAILABLE");
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(retry_after));
}

#[test]
fn an_overloaded_server_reports_when_to_retry() {
    let retry_after = Duration::from_secs(1);
    let status = status::generate_error(&GenerateError::Overloaded { retry_after }, "prime");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(retry_after));
}

#[test]
fn details_of_an_internal_error_are_not_sent_to_the_client() {
    let error = GenerateError::Internal("a secret path".to_owned());
    let status = status::generate_error(&error, "prime");
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("secret"));
}

#[test]
fn bytes_that_are_not_a_session_are_an_invalid_argument() {
    let forged = status::invalid_export(&SealError::Forged);
    let unfit = status::import_error(&ImportError::StateMismatch);
    for status in [forged, unfit] {
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("data: "));
    }
}

/// The keys of a new server.
fn keys() -> SnapshotKeys {
    let folder = tempfile::tempdir().unwrap();
    SnapshotKeys::read_or_create(&folder.path().join("key")).unwrap()
}

fn snapshot() -> SessionSnapshot {
    SessionSnapshot {
        principal: Owner::admin(),
        id: Some(SessionId::new("tale").unwrap()),
        identity: SessionIdentity {
            model: ModelVersion {
                name: "m".into(),
                version: 1,
            },
            digest: [1; 32],
            precision: Precision::Float32,
            revision: ARITHMETIC_REVISION,
        },
        state: SessionState::origin(1),
    }
}

#[test]
fn exports_are_sealed_and_those_of_another_server_are_read_as_untrusted_input() {
    let (here, elsewhere) = (keys(), keys());
    let snapshot = snapshot();
    let sealed = here.seal(&snapshot).unwrap();
    let admin = Principal::admin();
    let portable = portable_session(&sealed, &here, &admin).unwrap();
    assert_eq!(portable.id, snapshot.id);
    let read = portable_session(&sealed, &elsewhere, &admin).unwrap();
    assert_eq!(read, portable);
    let mut forged = sealed.to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bytes in [forged.into(), Bytes::from_static(b"something")] {
        let status = portable_session(&bytes, &here, &admin).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}

#[test]
fn only_an_administrator_imports_sessions_of_others_and_without_a_seal() {
    let (here, elsewhere) = (keys(), keys());
    let owner = Owner::new("alice").unwrap();
    let of_alice = SessionSnapshot {
        principal: owner.clone(),
        ..snapshot()
    };
    let sealed = here.seal(&of_alice).unwrap();
    let caller = |name: &str| {
        let roles = [Role::Generate].into_iter().collect();
        Principal::new(Owner::new(name).unwrap(), roles, Quotas::default())
    };
    portable_session(&sealed, &here, &caller("alice")).unwrap();
    portable_session(&sealed, &here, &Principal::admin()).unwrap();
    let code = |bytes: &Bytes, keys: &SnapshotKeys| {
        let portable = portable_session(bytes, keys, &caller("bob"));
        portable.unwrap_err().code()
    };
    assert_eq!(code(&sealed, &here), Code::InvalidArgument);
    assert_eq!(code(&sealed, &elsewhere), Code::PermissionDenied);
    assert_eq!(
        code(&Bytes::from_static(b"something"), &here),
        Code::InvalidArgument
    );
}
