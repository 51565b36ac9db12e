#![allow(clippy::unwrap_used)]

use charlstm_model::decode_step::ARITHMETIC_REVISION;
use charlstm_store::session::{
    ModelVersion, Owner, SessionIdentity, SessionSnapshot, SessionState,
};
use tonic::Code;
use tonic::codegen::http::Extensions;
use tonic_types::StatusExt;

use super::*;
use crate::rpc::principal::Principal;

fn request() -> pb::GenerateRequest {
    pb::GenerateRequest {
        prime: "a".to_owned(),
        ..pb::GenerateRequest::default()
    }
}

/// The context of a call of a server without principals.
fn context() -> CallContext {
    let mut extensions = Extensions::new();
    extensions.insert(Principal::anonymous());
    CallContext::of(&extensions).unwrap()
}

/// The keys of a new server.
fn keys() -> SnapshotKeys {
    let folder = tempfile::tempdir().unwrap();
    SnapshotKeys::read_or_create(&folder.path().join("key")).unwrap()
}

fn validate(request: pb::GenerateRequest) -> Result<GenerateCall, Status> {
    generate_call(request, &context(), &keys())
}

/// The field that a request is rejected for.
fn violation(request: pb::GenerateRequest) -> String {
    let status = validate(request).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let violations = &details.bad_request().unwrap().field_violations;
    violations[0].field.clone()
}

#[test]
fn fields_that_are_not_set_have_their_defaults() {
    let call = validate(request()).unwrap();
    assert_eq!(call.max_chars, 200);
    assert_eq!(call.settings, SamplingSettings::default());
    assert_eq!((call.session, call.seed), (SessionSource::None, None));
    let mut empty = request();
    empty.session_id = Some(String::new());
    assert_eq!(validate(empty).unwrap().session, SessionSource::None);
}

#[test]
fn fields_out_of_range_are_named() {
    let with = |change: fn(&mut pb::GenerateRequest)| {
        let mut request = request();
        change(&mut request);
        violation(request)
    };
    assert_eq!(with(|r| r.max_chars = Some(1_000_001)), "max_chars");
    assert_eq!(with(|r| r.session_id = Some("a b".into())), "session_id");
    assert_eq!(with(|r| r.expected_position = Some(0)), "expected_position");
    assert_eq!(with(|r| r.precision = Some("int4".into())), "precision");
    assert_eq!(with(|r| r.stop = vec!["a".into(); 17]), "stop");
    assert_eq!(
        with(|r| r.stop = vec!["a".into(), String::new()]),
        "stop[1]"
    );
    assert_eq!(with(|r| r.stop = vec!["a".repeat(257)]), "stop[0]");
    assert_eq!(
        with(|r| r.sampling.get_or_insert_default().temperature = Some(-1.0)),
        "sampling.temperature"
    );
    assert_eq!(
        with(|r| r.sampling.get_or_insert_default().top_p = Some(0.0)),
        "sampling.top_p"
    );
    assert_eq!(
        with(|r| r.sampling.get_or_insert_default().min_p = Some(2.0)),
        "sampling.min_p"
    );
}

fn snapshot() -> SessionSnapshot {
    SessionSnapshot {
        principal: Owner::admin(),
        id: None,
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
fn a_session_belongs_to_the_caller() {
    let mut named = request();
    named.session_id = Some("chat".into());
    named.precision = Some("float32".into());
    let call = validate(named).unwrap();
    let key = SessionKey::new(Owner::admin(), SessionId::new("chat").unwrap());
    assert_eq!(call.session, SessionSource::Stored(key));
    assert_eq!(call.precision, Some(Precision::Float32));
    assert_eq!(call.snapshot_for, None);
}

#[test]
fn a_sealed_session_is_continued_and_returned() {
    let keys = keys();
    let mut held = request();
    held.session_snapshot = keys.seal(&snapshot()).unwrap();
    held.return_session = Some(true);
    held.expected_position = Some(0);
    let call = generate_call(held, &context(), &keys).unwrap();
    assert_eq!(call.session, SessionSource::Snapshot(Box::new(snapshot())));
    assert_eq!(call.snapshot_for, Some(Owner::admin()));
}

#[test]
fn invalid_uses_of_client_held_sessions_are_named() {
    let sealed_elsewhere = keys().seal(&snapshot()).unwrap();
    let mut unknown_key = request();
    unknown_key.session_snapshot = sealed_elsewhere.clone();
    assert_eq!(violation(unknown_key), "session_snapshot");
    let mut two_sessions = request();
    two_sessions.session_snapshot = sealed_elsewhere;
    two_sessions.session_id = Some("chat".into());
    assert_eq!(violation(two_sessions), "session_snapshot");
    let mut stored = request();
    stored.session_id = Some("chat".into());
    stored.return_session = Some(true);
    assert_eq!(violation(stored), "return_session");
}

#[test]
fn every_event_becomes_the_message_of_its_kind() {
    use pb::generate_response::Event;
    let keys = keys();
    let response = |event| generate_response(event, &keys).unwrap().event;
    let finished = response(GenerationEvent::Finished(Finished {
        reason: FinishReason::Stop,
        chars: 3,
        position: 9,
        seconds: 0.5,
        snapshot: Some(Box::new(snapshot())),
    }));
    let Some(Event::Finished(finished)) = finished else {
        panic!("another event");
    };
    assert_eq!(finished.reason(), pb::FinishReason::Stop);
    assert_eq!((finished.chars, finished.position), (3, 9));
    assert_eq!(keys.open(&finished.session_snapshot, None), Ok(snapshot()));
    let text = response(GenerationEvent::Text(GeneratedText {
        text: "ab".to_owned(),
        logprobs: vec![-1.0, -2.0],
        position: 6,
    }));
    assert!(matches!(text, Some(Event::Text(text)) if text.logprobs.len() == 2));
}
