//! Sessions and streams as clients see them: the program, real sockets, and
//! the promises of the contract about what is kept between two calls.

#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/wire.rs"]
mod wire;

use std::time::Duration;

use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::session_service_client::SessionServiceClient;
use charlstm_proto::v1::{FinishReason, GenerateRequest, Sampling, ScoreRequest};
use support::Server;
use tonic::Code;
use tonic_types::StatusExt;
use wire::{PRIME, PRIMED, Wire, anew, drain, endless, expecting, further, is, length, read, rest};

#[tokio::test(flavor = "multi_thread")]
async fn two_calls_of_100_characters_write_what_one_of_200_writes() {
    let mut wire = Wire::start(&[]).await;
    let whole = wire.hear(anew("whole", 200)).await;
    assert_eq!(length(&whole.text), 200);
    assert_eq!(whole.finished.reason(), FinishReason::Length);
    assert_eq!(whole.finished.position, PRIMED + 200);

    let first = wire.text(anew("split", 100)).await;
    let second = wire.hear(further("split", 100)).await;
    assert_eq!(first + &second.text, whole.text);
    assert_eq!(second.finished.position, PRIMED + 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeded_text_is_the_same_alone_and_among_twenty_others() {
    // One thread that computes: all are in the same batch.
    let mut wire = Wire::start(&["--threads", "1"]).await;
    let alone = wire.text(anew("", 300)).await;
    let mut others = Vec::new();
    for n in 0..20 {
        let sampling = Some(Sampling {
            seed: Some(n),
            top_k: Some(n as u32 % 5),
            ..Sampling::default()
        });
        let request = GenerateRequest {
            sampling,
            ..anew("", 0)
        };
        let mut stream = wire.open(endless(request)).await;
        read(&mut stream, 1).await;
        others.push(drain(stream));
    }
    for _ in 0..3 {
        assert_eq!(wire.text(anew("", 300)).await, alone);
    }
    assert!(others.iter().all(|other| !other.is_finished()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_for_one_call_at_a_time() {
    let mut wire = Wire::start(&[]).await;
    wire.text(anew("tale", 20)).await;
    let mut first = wire.open(endless(further("tale", 0))).await;
    read(&mut first, 1).await;
    assert!(wire.session("tale").await.unwrap().busy);

    let second = wire.refusal(further("tale", 10)).await;
    is(&second, Code::Aborted, "SESSION_BUSY");
    let fork = wire.fork("tale", "other").await.unwrap_err();
    is(&fork, Code::Aborted, "SESSION_BUSY");
    let export = wire.export("tale").await.unwrap_err();
    is(&export, Code::Aborted, "SESSION_BUSY");

    // The first one was not disturbed, and ends when its session is deleted.
    read(&mut first, 100).await;
    wire.delete("tale").await;
    let end = rest(&mut first).await.unwrap();
    assert_eq!(end.finished.reason(), FinishReason::Cancelled);
    is(
        &wire.session("tale").await.unwrap_err(),
        Code::NotFound,
        "SESSION_NOT_FOUND",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_expects_its_beginning_is_repeated_and_another_place_is_refused() {
    let mut wire = Wire::start(&[]).await;
    let first = wire.text(anew("tale", 50)).await;
    // The very first call can be repeated as well.
    assert_eq!(wire.text(expecting(0, anew("tale", 50))).await, first);

    let begin = PRIMED + 50;
    let second = wire.text(expecting(begin, further("tale", 60))).await;
    for wrong in [0, 3, begin - 1, begin + 59, begin + 61, u64::MAX] {
        let status = wire.refusal(expecting(wrong, further("tale", 60))).await;
        is(&status, Code::FailedPrecondition, "POSITION_MISMATCH");
    }
    for _ in 0..2 {
        let again = wire.text(expecting(begin, further("tale", 60))).await;
        assert_eq!(again, second);
    }
    let end = begin + 60;
    let third = wire.text(expecting(end, further("tale", 70))).await;
    let whole = wire.text(anew("", 180)).await;
    assert_eq!(first + &second + &third, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_leaves_its_session_where_the_text_was_handed_over() {
    let mut wire = Wire::start(&[]).await;
    wire.text(anew("tale", 20)).await;
    wire.fork("tale", "calm").await.unwrap();
    let begin = PRIMED + 20;
    let mut stream = wire.open(endless(further("tale", 0))).await;
    let seen = read(&mut stream, 300).await;
    drop(stream);
    let left = wire.idle("tale").await;
    assert_eq!(left.last_call_position, begin);
    assert!(left.position >= begin + length(&seen), "{left:?}");

    // Whoever goes on misses nothing, and whoever repeats sees it again.
    wire.fork("tale", "on").await.unwrap();
    let on = wire.text(expecting(left.position, further("on", 50))).await;
    let chars = u32::try_from(left.position - begin).unwrap() + 50;
    let again = wire.text(expecting(begin, further("tale", chars))).await;
    let calm = wire.text(further("calm", chars)).await;
    assert!(again.starts_with(&seen));
    assert!(again == calm, "repeated as if nothing had been dropped");
    assert!(calm.ends_with(&on), "gone on as if nothing was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_session_is_told_from_one_that_never_was() {
    let mut wire = Wire::start(&["--max-sessions", "2"]).await;
    for id in ["first", "second", "third"] {
        wire.text(anew(id, 10)).await;
    }
    for request in [further("first", 10), anew("first", 10)] {
        let status = wire.refusal(request).await;
        is(&status, Code::NotFound, "SESSION_EVICTED_CAPACITY");
        assert!(status.message().contains("first"), "{}", status.message());
    }
    let status = wire.session("first").await.unwrap_err();
    is(&status, Code::NotFound, "SESSION_EVICTED_CAPACITY");
    let status = wire.session("never").await.unwrap_err();
    is(&status, Code::NotFound, "SESSION_NOT_FOUND");
    wire.text(further("second", 10)).await;

    // An id that never was begins; one that is deleted may begin again.
    assert_eq!(length(&wire.text(anew("never", 10)).await), 10);
    wire.delete("first").await;
    assert_eq!(length(&wire.text(anew("first", 10)).await), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn forked_and_exported_sessions_go_on_alike_and_hostile_bytes_are_refused() {
    let mut wire = Wire::start(&[]).await;
    wire.text(anew("tale", 30)).await;
    wire.fork("tale", "fork").await.unwrap();
    let data = wire.export("tale").await.unwrap();
    let status = wire.import(&data, "").await.unwrap_err();
    is(&status, Code::AlreadyExists, "SESSION_EXISTS");
    let status = wire.fork("tale", "fork").await.unwrap_err();
    is(&status, Code::AlreadyExists, "SESSION_EXISTS");

    let text = wire.text(further("tale", 100)).await;
    assert_eq!(wire.text(further("fork", 100)).await, text);
    wire.delete("tale").await;
    wire.import(&data, "").await.unwrap();
    assert_eq!(wire.text(further("tale", 100)).await, text);
    // What is imported can be repeated as well.
    wire.import(&data, "again").await.unwrap();
    let repeated = wire.text(expecting(0, anew("again", 130))).await;
    assert!(repeated.ends_with(&text));

    let mut hostile = vec![vec![], vec![0; 100], vec![0xff; 100_000], data.repeat(2)];
    hostile.extend((1..data.len()).step_by(29).map(|end| data[..end].to_vec()));
    hostile.extend((0..data.len()).step_by(7).map(|place| {
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
async fn a_stop_text_ends_the_text_and_is_not_sent() {
    let mut wire = Wire::start(&[]).await;
    let whole: Vec<char> = wire.text(anew("", 200)).await.chars().collect();
    let stop: String = whole[60..64].iter().collect();
    let whole: String = whole.into_iter().collect();
    let (before, after) = whole.split_once(&stop).unwrap();

    let mut request = anew("tale", 200);
    request.stop = vec!["never, as it is too long".to_owned(), stop.clone()];
    let heard = wire.hear(request).await;
    assert_eq!(heard.text, before);
    assert_eq!(heard.finished.reason(), FinishReason::Stop);
    assert_eq!(heard.finished.chars, length(before));
    // The session has seen the stop text, and goes on behind it.
    assert_eq!(heard.finished.position, PRIMED + length(before) + 4);
    let chars = u32::try_from(length(after)).unwrap();
    assert_eq!(wire.text(further("tale", chars)).await, after);

    // What is still undecided at the end of the text is sent.
    let end: String = whole.chars().skip(190).chain(['\n', '\n']).collect();
    let mut request = anew("", 200);
    request.stop = vec![end];
    assert_eq!(wire.text(request).await, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_log_probability_a_character_and_they_add_up_to_the_score() {
    let mut wire = Wire::start(&[]).await;
    let mut request = anew("", 150);
    request.logprobs = Some(true);
    let heard = wire.hear(request).await;
    assert_eq!(heard.logprobs.len(), 150);
    assert!(heard.logprobs.iter().all(|number| *number <= 0.0));
    assert!(wire.hear(anew("", 20)).await.logprobs.is_empty());

    let mut loss = 0.0;
    for (sign, text) in [(1.0, PRIME.to_owned() + &heard.text), (-1.0, PRIME.into())] {
        let model = "verse".to_owned();
        let scored = wire.texts.score(ScoreRequest { model, text }).await;
        let scored = scored.unwrap().into_inner();
        loss += sign * scored.loss * scored.chars as f64;
    }
    let sum: f64 = heard.logprobs.iter().map(|number| f64::from(*number)).sum();
    assert!((loss + sum).abs() < 1e-3 * loss, "{loss} and {sum}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_a_full_server_is_told_when_to_come_again() {
    let mut wire = Wire::start(&["--max-batch", "1", "--max-queue", "1"]).await;
    let mut first = wire.open(endless(anew("", 0))).await;
    read(&mut first, 1).await;
    let second = wire.open(endless(anew("", 0))).await;
    let status = wire.refusal(anew("", 10)).await;
    is(&status, Code::ResourceExhausted, "OVERLOADED");
    let delay = status.get_details_retry_info().unwrap().retry_delay;
    assert!(delay.is_some_and(|delay| delay > Duration::ZERO));

    // The others were not disturbed, and whoever leaves makes room.
    read(&mut first, 100).await;
    drop(second);
    let mut third = wire.admitted(anew("", 10)).await;
    assert_eq!(length(&rest(&mut third).await.unwrap().text), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_call_that_runs_or_waits_and_frees_its_place() {
    // The transport of the client has a clock too, and says CANCELLED.
    let ends = [Code::DeadlineExceeded, Code::Cancelled];
    let mut wire = Wire::start(&["--max-batch", "1", "--max-queue", "1"]).await;
    let status = wire.impatient().await;
    assert!(ends.contains(&status.code()), "running: {status:?}");
    let mut stream = wire.admitted(endless(anew("", 0))).await;
    read(&mut stream, 1).await;
    let running = drain(stream);
    let status = wire.impatient().await;
    assert!(ends.contains(&status.code()), "waiting: {status:?}");
    running.abort();

    // Both places are free: one is taken, and there is another.
    // Nobody reads the first, so it lets the other pass.
    let _held = wire.admitted(endless(anew("", 0))).await;
    let mut stream = wire.admitted(anew("", 10)).await;
    assert_eq!(length(&rest(&mut stream).await.unwrap().text), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_ends_a_stream_and_the_session_goes_on_after_a_restart() {
    let mut wire = Wire::start(&[]).await;
    wire.text(anew("tale", 20)).await;
    wire.fork("tale", "calm").await.unwrap();
    let mut stream = wire.open(endless(further("tale", 0))).await;
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
    text.push_str(&wire.text(further("tale", 100)).await);
    let chars = u32::try_from(length(&text)).unwrap();
    assert!(wire.text(further("calm", chars)).await == text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_text_that_lies_unread_in_the_usual_windows_costs_nobody_the_connection() {
    const LONG: u32 = 100_000;
    let mut wire = Wire::start(&[]).await;
    let channel = wire.server.connect().await;
    wire.texts = GenerationServiceClient::new(channel.clone());
    wire.sessions = SessionServiceClient::new(channel);
    let mut unread = wire.open(anew("long", LONG)).await;
    // The server is done with it, and nothing of it is read yet.
    wire.idle("long").await;
    assert_eq!(length(&wire.text(anew("", 100)).await), 100);
    let heard = rest(&mut unread).await.unwrap();
    assert_eq!(length(&heard.text), LONG.into());
    assert_eq!(heard.finished.reason(), FinishReason::Length);
}
