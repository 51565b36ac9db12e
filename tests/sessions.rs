//! Sessions and streams as clients see them: what the contract promises about
//! the state that is kept between two calls.

use std::time::Duration;

use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::score_stream_request::Payload;
use charlstm_proto::v1::session_service_client::SessionServiceClient;
use charlstm_proto::v1::{
    FinishReason, GenerateRequest, GenerateTextRequest, Sampling, ScoreRequest, ScoreStreamHeader,
    ScoreStreamRequest, ScoreStreamResponse, UnknownCharacters,
};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::support::Server;
use crate::support::wire::{
    PRIME, PRIMED, Wire, assert_status, drain, endless, expecting, length, read, rest, resume,
    start,
};

/// Place of the id of the key in a sealed session.
const KEY_ID: std::ops::Range<usize> = 6..14;

#[tokio::test(flavor = "multi_thread")]
async fn two_calls_of_100_characters_generate_the_text_of_one_call_of_200() {
    let mut wire = Wire::start(&[]).await;
    let whole = wire.generate(start("whole", 200)).await;
    assert_eq!(length(&whole.text), 200);
    assert_eq!(whole.finished.reason(), FinishReason::Length);
    assert_eq!(whole.finished.position, PRIMED + 200);

    let first = wire.text(start("split", 100)).await;
    let second = wire.generate(resume("split", 100)).await;
    assert_eq!(first + &second.text, whole.text);
    assert_eq!(second.finished.position, PRIMED + 200);
}

/// Returns the same request for a text in one message.
fn unary(request: GenerateRequest) -> GenerateTextRequest {
    GenerateTextRequest {
        model: request.model,
        prime: request.prime,
        max_chars: request.max_chars,
        session_id: request.session_id,
        sampling: request.sampling,
        logprobs: request.logprobs,
        ..GenerateTextRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_text_in_one_message_is_the_text_of_the_stream() {
    let mut wire = Wire::start(&[]).await;
    let mut request = start("streamed", 200);
    request.logprobs = Some(true);
    let streamed = wire.generate(request.clone()).await;
    request.session_id = Some("whole".to_owned());
    let whole = wire.generation.generate_text(unary(request)).await.unwrap();
    let whole = whole.into_inner();
    assert_eq!(whole.text, streamed.text);
    assert_eq!(whole.logprobs, streamed.logprobs);
    let started = whole.started.unwrap();
    assert_eq!((started.seed, started.position), (7, 0));
    let finished = whole.finished.unwrap();
    assert_eq!(finished.reason(), FinishReason::Length);
    assert_eq!((finished.chars, finished.position), (200, PRIMED + 200));
    assert_eq!(
        wire.text(resume("whole", 50)).await,
        wire.text(resume("streamed", 50)).await
    );

    let long = wire.generation.generate_text(unary(start("", 100_001)));
    let error = long.await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("100000"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_whole_text_leaves_its_session_as_it_was() {
    let mut wire = Wire::start(&[]).await;
    wire.text(start("s", 20)).await;
    let expected = wire.session("s").await.unwrap().position;
    let mut request = Request::new(unary(resume("s", 100_000)));
    request.set_timeout(Duration::from_millis(100));
    let error = wire.generation.generate_text(request).await.unwrap_err();
    assert_ne!(error.code(), Code::InvalidArgument, "{error}");
    assert_eq!(wire.idle("s").await.position, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeded_text_is_the_same_alone_and_in_a_batch_with_twenty_others() {
    // With one compute thread, all are in the same batch.
    let mut wire = Wire::start(&["--threads", "1"]).await;
    let alone = wire.text(start("", 300)).await;
    let mut others = Vec::new();
    for n in 0..20 {
        let sampling = Some(Sampling {
            seed: Some(n),
            top_k: Some(n as u32 % 5),
            ..Sampling::default()
        });
        let request = GenerateRequest {
            sampling,
            ..start("", 0)
        };
        let mut stream = wire.open(endless(request)).await;
        read(&mut stream, 1).await;
        others.push(drain(stream));
    }
    for _ in 0..3 {
        assert_eq!(wire.text(start("", 300)).await, alone);
    }
    assert!(others.iter().all(|other| !other.is_finished()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_accepts_one_call_at_a_time() {
    let mut wire = Wire::start(&[]).await;
    wire.text(start("tale", 20)).await;
    let mut first = wire.open(endless(resume("tale", 0))).await;
    read(&mut first, 1).await;
    assert!(wire.session("tale").await.unwrap().busy);

    let second = wire.rejection(resume("tale", 10)).await;
    assert_status(&second, Code::Aborted, "SESSION_BUSY");
    let fork = wire.fork("tale", "other").await.unwrap_err();
    assert_status(&fork, Code::Aborted, "SESSION_BUSY");
    let export = wire.export("tale").await.unwrap_err();
    assert_status(&export, Code::Aborted, "SESSION_BUSY");

    // The first call is not affected, and ends when its session is deleted.
    read(&mut first, 100).await;
    wire.delete("tale").await;
    let end = rest(&mut first).await.unwrap();
    assert_eq!(end.finished.reason(), FinishReason::Cancelled);
    assert_status(
        &wire.session("tale").await.unwrap_err(),
        Code::NotFound,
        "SESSION_NOT_FOUND",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_its_expected_position_can_be_repeated_and_other_positions_are_rejected() {
    let mut wire = Wire::start(&[]).await;
    let first = wire.text(start("tale", 50)).await;
    // The first call of the session can be repeated as well.
    assert_eq!(wire.text(expecting(0, start("tale", 50))).await, first);

    let begin = PRIMED + 50;
    let second = wire.text(expecting(begin, resume("tale", 60))).await;
    for wrong in [0, 3, begin - 1, begin + 59, begin + 61, u64::MAX] {
        let status = wire.rejection(expecting(wrong, resume("tale", 60))).await;
        assert_status(&status, Code::FailedPrecondition, "POSITION_MISMATCH");
    }
    for _ in 0..2 {
        let again = wire.text(expecting(begin, resume("tale", 60))).await;
        assert_eq!(again, second);
    }
    let end = begin + 60;
    let third = wire.text(expecting(end, resume("tale", 70))).await;
    let whole = wire.text(start("", 180)).await;
    assert_eq!(first + &second + &third, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_leaves_its_session_at_the_last_character_that_was_delivered() {
    let mut wire = Wire::start(&[]).await;
    wire.text(start("tale", 20)).await;
    wire.fork("tale", "calm").await.unwrap();
    let begin = PRIMED + 20;
    let mut stream = wire.open(endless(resume("tale", 0))).await;
    let seen = read(&mut stream, 300).await;
    drop(stream);
    let left = wire.idle("tale").await;
    assert_eq!(left.last_call_position, begin);
    assert!(left.position >= begin + length(&seen), "{left:?}");

    // A call that continues misses nothing, and a call that repeats gets the
    // same text again.
    wire.fork("tale", "on").await.unwrap();
    let on = wire.text(expecting(left.position, resume("on", 50))).await;
    let chars = u32::try_from(left.position - begin).unwrap() + 50;
    let again = wire.text(expecting(begin, resume("tale", chars))).await;
    let calm = wire.text(resume("calm", chars)).await;
    assert!(again.starts_with(&seen));
    assert!(again == calm, "the repeated text differs");
    assert!(calm.ends_with(&on), "the continued text differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_session_is_distinguished_from_one_that_never_existed() {
    let mut wire = Wire::start(&["--max-sessions", "2"]).await;
    for id in ["first", "second", "third"] {
        wire.text(start(id, 10)).await;
    }
    for request in [resume("first", 10), start("first", 10)] {
        let status = wire.rejection(request).await;
        assert_status(&status, Code::NotFound, "SESSION_EVICTED_CAPACITY");
        assert!(status.message().contains("first"), "{}", status.message());
    }
    let status = wire.session("first").await.unwrap_err();
    assert_status(&status, Code::NotFound, "SESSION_EVICTED_CAPACITY");
    let status = wire.session("never").await.unwrap_err();
    assert_status(&status, Code::NotFound, "SESSION_NOT_FOUND");
    wire.text(resume("second", 10)).await;

    // An unused id starts a session, and so does one that was deleted.
    assert_eq!(length(&wire.text(start("never", 10)).await), 10);
    wire.delete("first").await;
    assert_eq!(length(&wire.text(start("first", 10)).await), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn forked_and_exported_sessions_continue_with_the_same_text_and_invalid_bytes_are_rejected() {
    let mut wire = Wire::start(&[]).await;
    wire.text(start("tale", 30)).await;
    wire.fork("tale", "fork").await.unwrap();
    let data = wire.export("tale").await.unwrap();
    let status = wire.import(&data, "").await.unwrap_err();
    assert_status(&status, Code::AlreadyExists, "SESSION_EXISTS");
    let status = wire.fork("tale", "fork").await.unwrap_err();
    assert_status(&status, Code::AlreadyExists, "SESSION_EXISTS");

    let text = wire.text(resume("tale", 100)).await;
    assert_eq!(wire.text(resume("fork", 100)).await, text);
    wire.delete("tale").await;
    wire.import(&data, "").await.unwrap();
    assert_eq!(wire.text(resume("tale", 100)).await, text);
    // An export has no last call: it cannot be rewound.
    wire.import(&data, "again").await.unwrap();
    let status = wire.rejection(expecting(0, start("again", 130))).await;
    assert_status(&status, Code::FailedPrecondition, "POSITION_MISMATCH");
    let continued = wire
        .text(expecting(PRIMED + 30, resume("again", 100)))
        .await;
    assert_eq!(continued, text);

    let mut hostile = vec![vec![], vec![0; 100], vec![0xff; 100_000], data.repeat(2)];
    hostile.extend((1..data.len()).step_by(29).map(|end| data[..end].to_vec()));
    // Not in the id of the key: bytes that are sealed with another key are
    // read as they are.
    let places = (0..data.len()).filter(|place| !KEY_ID.contains(place));
    hostile.extend(places.step_by(7).map(|place| {
        let mut data = data.clone();
        data[place] ^= 1 << (place % 8);
        data
    }));
    for bytes in hostile {
        let status = wire.import(&bytes, "hostile").await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "data");
    }
    assert!(wire.session("hostile").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_client_holds_continues_on_any_server_with_the_key() {
    let mut wire = Wire::start(&[]).await;
    let whole = wire.text(start("", 200)).await;
    let held = |request: GenerateRequest| GenerateRequest {
        session_id: None,
        return_session: Some(true),
        ..request
    };
    let first = wire.generate(held(start("", 100))).await;
    let snapshot = first.finished.session_snapshot;
    assert!(!snapshot.is_empty());
    let server = Server::start_in(wire.server.stop(), &[]);
    let mut wire = Wire::to(server).await;
    let second = wire
        .generate(GenerateRequest {
            session_snapshot: snapshot.clone(),
            ..held(resume("", 100))
        })
        .await;
    assert_eq!(first.text + &second.text, whole);
    assert_eq!(second.finished.position, PRIMED + 200);

    let mut forged = snapshot.to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let status = wire
        .rejection(GenerateRequest {
            session_snapshot: forged.into(),
            ..held(resume("", 100))
        })
        .await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_text_ends_the_generation_and_is_not_sent() {
    let mut wire = Wire::start(&[]).await;
    let whole: Vec<char> = wire.text(start("", 200)).await.chars().collect();
    let stop: String = whole[60..64].iter().collect();
    let whole: String = whole.into_iter().collect();
    let (before, after) = whole.split_once(&stop).unwrap();

    let mut request = start("tale", 200);
    request.stop = vec!["never, because it is too long".to_owned(), stop.clone()];
    let generated = wire.generate(request).await;
    assert_eq!(generated.text, before);
    assert_eq!(generated.finished.reason(), FinishReason::Stop);
    assert_eq!(generated.finished.chars, length(before));
    // The session has processed the stop text, and continues after it.
    assert_eq!(generated.finished.position, PRIMED + length(before) + 4);
    let chars = u32::try_from(length(after)).unwrap();
    assert_eq!(wire.text(resume("tale", chars)).await, after);

    // The beginning of a stop text at the end of the generation is sent.
    let end: String = whole.chars().skip(190).chain(['\n', '\n']).collect();
    let mut request = start("", 200);
    request.stop = vec![end];
    assert_eq!(wire.text(request).await, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_log_probability_per_character_and_their_sum_is_the_score() {
    let mut wire = Wire::start(&[]).await;
    let mut request = start("", 150);
    request.logprobs = Some(true);
    let generated = wire.generate(request).await;
    assert_eq!(generated.logprobs.len(), 150);
    assert!(generated.logprobs.iter().all(|number| *number <= 0.0));
    assert!(wire.generate(start("", 20)).await.logprobs.is_empty());

    let mut loss = 0.0;
    for (sign, text) in [
        (1.0, PRIME.to_owned() + &generated.text),
        (-1.0, PRIME.into()),
    ] {
        let model = "verse".to_owned();
        let request = ScoreRequest {
            model,
            text,
            ..Default::default()
        };
        let scored = wire.generation.score(request).await;
        let scored = scored.unwrap().into_inner();
        loss += sign * scored.loss * scored.chars as f64;
    }
    let sum: f64 = generated
        .logprobs
        .iter()
        .map(|number| f64::from(*number))
        .sum();
    assert!((loss + sum).abs() < 1e-3 * loss, "{loss} and {sum}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_scored_as_one_text_however_it_is_divided() {
    let mut wire = Wire::start(&[]).await;
    let text = format!("{PRIME}{PRIME}é€{PRIME}");
    let request = ScoreRequest {
        model: "verse".to_owned(),
        text: text.clone(),
        logprobs: Some(true),
        unknown: UnknownCharacters::Skip.into(),
    };
    let whole = wire.generation.score(request).await.unwrap().into_inner();
    assert_eq!(whole.logprobs.len() as u64, whole.chars);
    assert_eq!(whole.unknown_chars, 2);

    let header = ScoreStreamHeader {
        model: "verse".to_owned(),
        logprobs: Some(true),
        unknown: UnknownCharacters::Skip.into(),
    };
    let message = |payload| ScoreStreamRequest {
        payload: Some(payload),
    };
    let mut messages = vec![message(Payload::Header(header.clone()))];
    let chunks = text.as_bytes().chunks(7);
    messages.extend(chunks.map(|chunk| message(Payload::TextChunk(chunk.to_vec().into()))));
    let mut scores = score_stream(&mut wire, messages).await.unwrap();
    let (last, mut logprobs) = (scores.pop().unwrap(), Vec::new());
    for score in scores {
        assert!(!score.done);
        logprobs.extend(score.logprobs);
    }
    assert!(last.done && last.logprobs.is_empty());
    assert_eq!(last.loss, whole.loss);
    assert_eq!((last.chars, last.unknown_chars), (whole.chars, 2));
    assert_eq!(logprobs, whole.logprobs);

    let chunk = |bytes: &'static [u8]| message(Payload::TextChunk(bytes.into()));
    let mut strict = header.clone();
    strict.unknown = UnknownCharacters::Error.into();
    for (messages, error) in [
        (vec![chunk(b"a")], "header: must be in the first message"),
        (vec![], "header: must be in the first message"),
        (
            vec![message(Payload::Header(header.clone())), chunk(b"a\xff")],
            "text_chunk: is not valid UTF-8 at byte 1",
        ),
        (
            vec![message(Payload::Header(header.clone())), chunk(b"ab\xc3")],
            "text_chunk: is not valid UTF-8 at byte 2",
        ),
        (
            vec![message(Payload::Header(header)), chunk(b"a")],
            "text_chunk: must have at least 2 characters, not 1",
        ),
        (
            vec![
                message(Payload::Header(strict)),
                chunk(b"aa"),
                chunk("aé".as_bytes()),
            ],
            "text_chunk: character 'é' (U+00E9) at position 3",
        ),
    ] {
        let status = score_stream(&mut wire, messages).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(error), "{}", status.message());
    }
}

/// Sends all messages and returns the responses.
async fn score_stream(
    wire: &mut Wire,
    messages: Vec<ScoreStreamRequest>,
) -> Result<Vec<ScoreStreamResponse>, Status> {
    let messages = tokio_stream::iter(messages);
    let mut stream = wire.generation.score_stream(messages).await?.into_inner();
    let mut responses = Vec::new();
    while let Some(response) = stream.message().await? {
        responses.push(response);
    }
    Ok(responses)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saturated_server_rejects_calls_with_a_retry_delay() {
    let mut wire = Wire::start(&["--max-batch", "1", "--max-queue", "1"]).await;
    let mut first = wire.open(endless(start("", 0))).await;
    read(&mut first, 1).await;
    let second = wire.open(endless(start("", 0))).await;
    let status = wire.rejection(start("", 10)).await;
    assert_status(&status, Code::ResourceExhausted, "OVERLOADED");
    let delay = status.get_details_retry_info().unwrap().retry_delay;
    assert!(delay.is_some_and(|delay| delay > Duration::ZERO));

    // The other calls are not affected, and a client that leaves frees a place.
    read(&mut first, 100).await;
    drop(second);
    let mut third = wire.admitted(start("", 10)).await;
    assert_eq!(length(&rest(&mut third).await.unwrap().text), 10);
}

/// Makes an endless call with a deadline, and returns how it ends. The client
/// of tonic would end the call itself, as CANCELLED or DEADLINE_EXCEEDED; this
/// one sends the deadline and waits for the server.
async fn end_at_deadline(server: &Server) -> Status {
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let origin = server.url().parse().unwrap();
    let mut client = GenerationServiceClient::with_origin(client, origin);
    let mut request = Request::new(endless(start("", 0)));
    request.set_timeout(Duration::from_millis(400));
    match client.generate(request).await {
        Ok(stream) => rest(&mut stream.into_inner()).await.err().unwrap(),
        Err(status) => status,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_running_or_waiting_call_and_frees_its_place() {
    let mut wire = Wire::start(&["--max-batch", "1", "--max-queue", "1"]).await;
    let running = end_at_deadline(&wire.server).await;
    assert_status(&running, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    let mut stream = wire.admitted(endless(start("", 0))).await;
    read(&mut stream, 1).await;
    let reader = drain(stream);
    let waiting = end_at_deadline(&wire.server).await;
    assert_status(&waiting, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    reader.abort();

    // Both places are free. Nobody reads the first stream, so it is parked and
    // the second one gets its slot.
    let _unread = wire.admitted(endless(start("", 0))).await;
    let mut stream = wire.admitted(start("", 10)).await;
    assert_eq!(length(&rest(&mut stream).await.unwrap().text), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_a_stream_and_the_session_continues_after_a_restart() {
    let mut wire = Wire::start(&[]).await;
    wire.text(start("tale", 20)).await;
    wire.fork("tale", "calm").await.unwrap();
    let mut stream = wire.open(endless(resume("tale", 0))).await;
    let mut text = read(&mut stream, 100).await;
    wire.server.signal_to_stop();
    let end = rest(&mut stream).await.unwrap();
    text.push_str(&end.text);
    assert_eq!(end.finished.reason(), FinishReason::Shutdown);
    assert_eq!(end.finished.chars, length(&text));
    assert_eq!(end.finished.position, PRIMED + 20 + length(&text));

    let server = Server::start_in(wire.server.ended(), &[]);
    let mut wire = Wire::to(server).await;
    let position = wire.session("tale").await.unwrap().position;
    assert_eq!(position, end.finished.position);
    text.push_str(&wire.text(resume("tale", 100)).await);
    let chars = u32::try_from(length(&text)).unwrap();
    assert!(wire.text(resume("calm", chars)).await == text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_unread_text_does_not_break_a_connection_with_default_windows() {
    const LONG: u32 = 100_000;
    let mut wire = Wire::start(&[]).await;
    let channel = wire.server.connect().await;
    wire.generation = GenerationServiceClient::new(channel.clone());
    wire.sessions = SessionServiceClient::new(channel);
    let mut unread = wire.open(start("long", LONG)).await;
    // The server has finished it, and nothing of it has been read.
    wire.idle("long").await;
    assert_eq!(length(&wire.text(start("", 100)).await), 100);
    let generated = rest(&mut unread).await.unwrap();
    assert_eq!(length(&generated.text), u64::from(LONG));
    assert_eq!(generated.finished.reason(), FinishReason::Length);
}
