#![allow(clippy::unwrap_used)]

use tonic::Code;
use tonic_types::StatusExt;

use super::*;

fn request() -> pb::GenerateRequest {
    pb::GenerateRequest {
        prime: "a".to_owned(),
        ..pb::GenerateRequest::default()
    }
}

fn validate(request: pb::GenerateRequest) -> Result<GenerateCall, Status> {
    generate_call(request, &Owner::admin(), None)
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
    assert_eq!((call.session, call.seed), (None, None));
    let mut empty = request();
    empty.session_id = Some(String::new());
    assert_eq!(validate(empty).unwrap().session, None);
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

#[test]
fn a_session_belongs_to_the_caller() {
    let mut named = request();
    named.session_id = Some("chat".into());
    named.precision = Some("float32".into());
    let owner = Owner::new("bob").unwrap();
    let call = generate_call(named, &owner, None).unwrap();
    assert_eq!(call.session.unwrap().owner, owner);
    assert_eq!(call.precision, Some(Precision::Float32));
}

#[test]
fn client_held_sessions_are_not_ignored_in_silence() {
    let mut held = request();
    held.return_session = Some(true);
    let mut started = request();
    started.session_snapshot = vec![1].into();
    for request in [held, started] {
        let status = validate(request).unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

#[test]
fn every_event_becomes_the_message_of_its_kind() {
    use pb::generate_response::Event;
    let finished = generate_response(GenerationEvent::Finished(Finished {
        reason: FinishReason::Stop,
        chars: 3,
        position: 9,
        seconds: 0.5,
    }));
    let Some(Event::Finished(finished)) = finished.event else {
        panic!("another event");
    };
    assert_eq!(finished.reason(), pb::FinishReason::Stop);
    assert_eq!((finished.chars, finished.position), (3, 9));
    let text = generate_response(GenerationEvent::Text(GeneratedText {
        text: "ab".to_owned(),
        logprobs: vec![-1.0, -2.0],
        position: 6,
    }));
    assert!(matches!(text.event, Some(Event::Text(text)) if text.logprobs.len() == 2));
}
