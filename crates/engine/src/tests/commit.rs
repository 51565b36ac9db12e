//! When and where calls commit their sessions.

use futures_util::FutureExt;

use super::controlled_storage::{ControlledStorage, Failure, unavailable};
use super::*;

fn start_controlled(config: EngineConfig) -> (Engine, Arc<TestModels>, Arc<ControlledStorage>) {
    let storage = ControlledStorage::new();
    let (engine, models) = start_on(config, Arc::clone(&storage) as Arc<dyn SessionStorage>);
    (engine, models, storage)
}

#[tokio::test]
async fn finished_is_sent_only_once_the_commit_is_durable() {
    let (engine, _, storage) = start_controlled(config());
    storage.hold_commits();
    for max_chars in [0, 20] {
        let name = format!("s{max_chars}");
        let before = storage.submitted();
        let call = session_call(&name, "abc", max_chars);
        let mut stream = engine.generate(call).await.unwrap();
        let Some(Ok(GenerationEvent::Started(_))) = stream.next().await else {
            panic!("the call must start");
        };
        read_some(&mut stream, max_chars as usize).await;
        until(|| storage.submitted() == before + 1).await;
        assert!(stream.next().now_or_never().is_none());
        assert_eq!(session(&engine, &name).await, Err(SessionError::Unknown));
        storage.release_commits();
        let finished = last_event(stream).await.unwrap();
        assert_eq!(finished.position, 3 + max_chars);
        assert_eq!(position(&engine, &name).await, 3 + max_chars);
        storage.hold_commits();
    }
    storage.release_commits();
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_stream_commits_at_the_position_of_its_reader() {
    let (engine, models, storage) = start_controlled(config());
    let (straight, _) = reference(&models, "abc", 8000, 1);
    storage.hold_commits();
    let call = seeded_call("s", "abc", 1_000_000);
    let mut stream = engine.generate(call).await.unwrap();
    let taken = read_some(&mut stream, 30).await;
    drop(stream);
    until(|| storage.submitted() == 1).await;
    assert_eq!(
        engine.live_generations(),
        1,
        "the commit is part of the call"
    );
    storage.release_commits();
    until_idle(&engine).await;
    assert_eq!(position(&engine, "s").await, 3 + taken.len() as u64);
    let rest = text(&engine, session_call("s", "", 20)).await;
    assert_eq!(taken.clone() + &rest, straight[..taken.len() + 20]);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_whole_text_that_fails_or_is_dropped_leaves_its_session_as_it_was() {
    let (engine, models, _) = start_controlled(config());
    let (straight, _) = reference(&models, "abc", 100, 1);
    let first = text(&engine, seeded_call("s", "abc", 20)).await;
    let endless = || session_call("s", "", 1_000_000);

    let mut dropped = engine.generate(endless()).await.unwrap().whole();
    read_some(&mut dropped, 30).await;
    drop(dropped);
    until_idle(&engine).await;
    assert_eq!(position(&engine, "s").await, 23);

    let mut late = endless();
    late.deadline = Some(std::time::Instant::now() + Duration::from_millis(50));
    let failed = engine.generate(late).await.unwrap().whole();
    assert_eq!(last_event(failed).await, Err(GenerateError::Deadline));
    assert_eq!(position(&engine, "s").await, 23);

    let rest = text(&engine, session_call("s", "", 20)).await;
    assert_eq!(first + &rest, straight[..40]);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_call_of_which_nothing_was_taken_did_not_happen() {
    let (engine, _, _) = start_controlled(config());
    for max_chars in [0, 5, 1_000_000] {
        let stream = engine.generate(session_call("s", "abc", max_chars)).await;
        drop(stream.unwrap());
        until_idle(&engine).await;
        assert_eq!(session(&engine, "s").await, Err(SessionError::Unknown));
    }
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_repeats_a_dropped_call_waits_for_its_commit() {
    let (engine, _, storage) = start_controlled(config());
    storage.hold_commits();
    let call = seeded_call("s", "abc", 1_000_000);
    let mut stream = engine.generate(call).await.unwrap();
    read_some(&mut stream, 5).await;
    drop(stream);
    let repeating = engine.clone();
    let repeated = tokio::spawn(async move {
        let mut again = seeded_call("s", "abc", 10);
        again.expected_position = Some(0);
        text(&repeating, again).await
    });
    until(|| storage.submitted() == 1).await;
    assert!(!repeated.is_finished());
    storage.release_commits();
    let expected = text(&engine, call_without_session()).await;
    assert_eq!(repeated.await.unwrap(), expected);
    engine.stop().await.unwrap();
}

fn call_without_session() -> GenerateCall {
    call("abc", 10)
}

#[tokio::test]
async fn a_failed_commit_ends_the_call_with_its_error_and_leaves_the_session() {
    let (engine, models, storage) = start_controlled(config());
    let (straight, _) = reference(&models, "abc", 60, 1);
    text(&engine, seeded_call("s", "abc", 20)).await;
    let errors = [
        SessionError::Unavailable(unavailable()),
        SessionError::CommitUnknown,
        SessionError::Fenced {
            replica: Some("other".into()),
        },
    ];
    for error in errors {
        storage.fail_next_commit(Failure::Error(error.clone()));
        let mut stream = engine.generate(session_call("s", "", 40)).await.unwrap();
        assert_eq!(read_some(&mut stream, 40).await, straight[20..]);
        let expected = GenerateError::Session { id: id("s"), error };
        assert_eq!(last_event(stream).await, Err(expected));
        assert_eq!(position(&engine, "s").await, 23);
    }
    // The safe retry resolves it.
    let mut again = seeded_call("s", "", 40);
    again.expected_position = Some(23);
    assert_eq!(text(&engine, again).await, straight[20..]);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_commit_that_panics_ends_its_call_with_an_error() {
    let (engine, _, storage) = start_controlled(config());
    storage.fail_next_commit(Failure::Panic);
    let stream = engine.generate(session_call("s", "abc", 5)).await.unwrap();
    let error = last_event(stream).await.unwrap_err();
    assert!(matches!(error, GenerateError::Internal(_)), "{error}");
    until_idle(&engine).await;
    text(&engine, session_call("s", "abc", 5)).await;
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn an_unavailable_storage_rejects_calls_in_sessions_before_they_generate() {
    let (engine, _, storage) = start_controlled(config());
    text(&engine, session_call("s", "abc", 5)).await;
    storage.set_unavailable(true);
    let steps = engine.stats().steps;
    for name in ["s", "new"] {
        let error = session_rejection(&engine, session_call(name, "abc", 5)).await;
        assert_eq!(error, SessionError::Unavailable(unavailable()));
    }
    assert_eq!(engine.stats().steps, steps);
    // Everything else works.
    text(&engine, call("abc", 5)).await;
    assert_eq!(position(&engine, "s").await, 8);
    storage.set_unavailable(false);
    text(&engine, session_call("s", "", 5)).await;
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_deleted_session_gets_no_more_text_and_its_call_ends_as_cancelled() {
    let (engine, _, _) = start_controlled(config());
    let call = session_call("s", "abc", 1_000_000);
    let mut stream = engine.generate(call).await.unwrap();
    let taken = read_some(&mut stream, 1).await;
    engine.delete_session(&key("s")).await.unwrap();
    match stream.next().await.unwrap().unwrap() {
        GenerationEvent::Finished(finished) => {
            assert_eq!(finished.reason, FinishReason::Cancelled);
            assert_eq!(finished.chars, taken.len() as u64);
            assert_eq!(finished.position, 3 + taken.len() as u64);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(session(&engine, "s").await, Err(SessionError::Unknown));
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_deleted_during_its_commit_stays_deleted() {
    let (engine, _, storage) = start_controlled(config());
    storage.hold_commits();
    let mut stream = engine.generate(session_call("s", "abc", 5)).await.unwrap();
    read_some(&mut stream, 5).await;
    until(|| storage.submitted() == 1).await;
    engine.delete_session(&key("s")).await.unwrap();
    storage.release_commits();
    let finished = last_event(stream).await.unwrap();
    assert_eq!(finished.reason, FinishReason::Cancelled);
    assert_eq!(session(&engine, "s").await, Err(SessionError::Unknown));
    engine.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_commits_every_call_before_the_storage_is_shut_down() {
    let (engine, _, storage) = start_controlled(config());
    storage.hold_commits();
    // Calls whose commits are pending.
    let mut complete = Vec::new();
    for i in 0..8 {
        let call = session_call(&format!("complete{i}"), "abc", 20);
        let mut stream = engine.generate(call).await.unwrap();
        read_some(&mut stream, 20).await;
        complete.push(stream);
    }
    until(|| storage.submitted() == 8).await;
    // Calls that run.
    let mut running = Vec::new();
    for i in 0..8 {
        let call = session_call(&format!("running{i}"), "abc", 1_000_000);
        let mut stream = engine.generate(call).await.unwrap();
        let taken = read_some(&mut stream, 10).await;
        running.push((stream, taken));
    }
    // One whose reader has just left.
    let call = session_call("left", "abc", 1_000_000);
    let mut left = engine.generate(call).await.unwrap();
    let left_at = 3 + read_some(&mut left, 10).await.len() as u64;
    drop(left);

    let stopper = engine.clone();
    let stop = tokio::spawn(async move { stopper.stop().await });
    let readers = running.into_iter().map(|(mut stream, mut taken)| {
        tokio::spawn(async move {
            loop {
                match stream.next().await.unwrap().unwrap() {
                    GenerationEvent::Text(event) => taken.push_str(&event.text),
                    GenerationEvent::Finished(finished) => break (finished, taken.len() as u64),
                    GenerationEvent::Started(_) => panic!("the call has started"),
                }
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    until(|| storage.submitted() == 17).await;
    assert!(!storage.is_shut_down());
    storage.release_commits();
    stop.await.unwrap().unwrap();
    assert!(storage.is_shut_down());

    for (i, stream) in complete.into_iter().enumerate() {
        assert_eq!(last_event(stream).await.unwrap().position, 23);
        assert_eq!(position(&engine, &format!("complete{i}")).await, 23);
    }
    for (i, reader) in readers.into_iter().enumerate() {
        let (finished, taken) = reader.await.unwrap();
        assert_eq!(finished.reason, FinishReason::Shutdown);
        assert_eq!(finished.position, 3 + taken);
        assert_eq!(position(&engine, &format!("running{i}")).await, 3 + taken);
    }
    assert_eq!(position(&engine, "left").await, left_at);
    let error = rejection(&engine, call_without_session()).await;
    assert_eq!(error, GenerateError::Stopping);
    let error = engine.delete_session(&key("left")).await.unwrap_err();
    assert_eq!(error, SessionError::Stopping);
}

#[tokio::test]
async fn stopping_commits_the_sessions_of_readers_that_do_not_read() {
    let (engine, _, _) = start_controlled(EngineConfig {
        stop_grace: Duration::from_millis(20),
        ..config()
    });
    let call = session_call("s", "abc", 1_000_000);
    let mut stream = engine.generate(call).await.unwrap();
    let taken = read_some(&mut stream, 10).await;
    until(|| engine.stats().rows > taken.len() as u64).await;
    engine.stop().await.unwrap();
    assert_eq!(position(&engine, "s").await, 3 + taken.len() as u64);
    assert_eq!(last_event(stream).await, Err(GenerateError::Stopping));
}

#[tokio::test]
async fn a_worker_that_ends_unexpectedly_ends_its_calls_and_fails_the_engine() {
    let (engine, _, _) = start_controlled(EngineConfig {
        workers: 1,
        max_unread_chars: 64,
        ..config()
    });
    let mut stream = engine
        .generate(session_call("s", "abc", 1_000_000))
        .await
        .unwrap();
    let taken = read_some(&mut stream, 10).await;
    // One whose text has ended and was not read.
    let unread = engine.generate(session_call("t", "abc", 5)).await.unwrap();
    assert!(engine.failed().now_or_never().is_none());
    engine.crash_worker();
    let failed = tokio::time::timeout(PATIENCE, engine.failed()).await;
    assert!(failed.is_ok());
    let error = last_event(stream).await.unwrap_err();
    assert!(matches!(error, GenerateError::Internal(_)), "{error}");
    assert!(last_event(unread).await.is_err());
    assert_eq!(
        rejection(&engine, call_without_session()).await,
        GenerateError::Stopping
    );
    engine.stop().await.unwrap();
    assert_eq!(position(&engine, "s").await, 3 + taken.len() as u64);
    assert_eq!(engine.live_generations(), 0);
}
