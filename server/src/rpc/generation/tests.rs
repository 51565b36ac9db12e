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

/// The field that a request is refused for.
fn violation(request: pb::GenerateRequest) -> String {
    let status = generate_call(request, None).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let violations = &details.bad_request().unwrap().field_violations;
    violations[0].field.clone()
}

#[test]
fn fields_that_are_not_set_take_their_defaults() {
    let call = generate_call(request(), None).unwrap();
    assert_eq!(call.max_chars, 200);
    assert_eq!(call.settings, SamplingSettings::default());
    assert_eq!((call.session, call.seed), (None, None));
    let mut empty = request();
    empty.session_id = Some(String::new());
    assert_eq!(generate_call(empty, None).unwrap().session, None);
}

#[test]
fn fields_outside_their_limits_are_named() {
    let with = |change: fn(&mut pb::GenerateRequest)| {
        let mut request = request();
        change(&mut request);
        violation(request)
    };
    assert_eq!(with(|r| r.max_chars = Some(1_000_001)), "max_chars");
    assert_eq!(with(|r| r.session_id = Some("a b".into())), "session_id");
    assert_eq!(with(|r| r.expected_position = Some(0)), "expected_position");
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
fn every_event_becomes_the_message_of_its_kind() {
    use pb::generate_response::Event;
    let finished = generate_response(GenerationEvent::Finished(Finished {
        reason: FinishReason::Stop,
        chars: 3,
        position: 9,
        seconds: 0.5,
    }));
    let Some(Event::Finished(finished)) = finished.event else {
        panic!("not a finish");
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
