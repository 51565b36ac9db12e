//! What happens when there is too much, too slow, too late, or gone.

use std::time::Instant;

use super::*;
use crate::sessions::store::SessionError;
use charlstm_repository::ModelId;

#[tokio::test]
async fn a_full_engine_refuses_at_once_and_takes_again_when_there_is_room() {
    let (engine, _) = start(EngineConfig {
        workers: 1,
        max_batch: 1,
        max_queue: 1,
        // The text under way is never parked.
        max_unread_chars: usize::MAX,
        ..config()
    });
    let mut running = engine.generate(call("abc", 1_000_000)).await.unwrap();
    read_some(&mut running, 1).await;
    let queued = engine.generate(call("abc", 5)).await.unwrap();
    until(|| engine.load_stats().queued == 1).await;
    let refused = engine.generate(call("abc", 5)).await.err();
    assert!(matches!(refused, Some(GenerateError::Overloaded { .. })));
    drop(running);
    assert_eq!(read(queued).await.unwrap().finished.chars, 5);
    assert_eq!(text(&engine, call("abc", 5)).await.len(), 5);
    engine.stop().unwrap();
}

#[tokio::test]
async fn one_who_leaves_the_queue_frees_his_place_and_his_session() {
    let (engine, _) = start(EngineConfig {
        workers: 1,
        max_batch: 1,
        max_queue: 1,
        // The text under way is never parked.
        max_unread_chars: usize::MAX,
        ..config()
    });
    let mut running = engine.generate(call("abc", 1_000_000)).await.unwrap();
    read_some(&mut running, 1).await;
    let queued = engine.generate(session_call("s", "abc", 5)).await.unwrap();
    drop(queued);
    until(|| engine.session(&id("s")) == Err(SessionError::Unknown)).await;
    let queued = engine.generate(call("abc", 5)).await.unwrap();
    drop(running);
    read(queued).await.unwrap();
    until(|| engine.live_texts() == 0).await;
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_deadline_is_noticed_in_the_queue() {
    let (engine, _) = start(EngineConfig {
        workers: 1,
        max_batch: 1,
        // The text under way is never parked.
        max_unread_chars: usize::MAX,
        ..config()
    });
    let mut running = engine.generate(call("abc", 1_000_000)).await.unwrap();
    read_some(&mut running, 1).await;
    let mut late = session_call("s", "abc", 5);
    late.deadline = Some(Instant::now() + Duration::from_millis(30));
    let mut stream = engine.generate(late).await.unwrap();
    assert_eq!(stream.next().await, Some(Err(GenerateError::Deadline)));
    assert_eq!(engine.session(&id("s")), Err(SessionError::Unknown));
    drop(running);
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_deadline_is_noticed_while_priming_and_while_generating() {
    let (engine, _) = start(config());
    for (prime, max_chars) in [("abc".repeat(300_000), 10), ("abc".to_owned(), 1_000_000)] {
        let mut late = call(&prime, max_chars);
        late.deadline = Some(Instant::now() + Duration::from_millis(50));
        let stream = engine.generate(late).await.unwrap();
        assert_eq!(read(stream).await.err(), Some(GenerateError::Deadline));
    }
    until(|| engine.load_stats().running == 0).await;
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_slow_reader_is_parked_and_loses_nothing() {
    let (engine, _) = start(EngineConfig {
        workers: 1,
        max_batch: 1,
        max_unread_chars: 10,
        ..config()
    });
    let expected = text(&engine, call("abc", 500)).await;
    let mut slow = engine.generate(call("abc", 500)).await.unwrap();
    let mut got = read_some(&mut slow, 1).await;
    // Parked, it leaves the only place to others, again and again.
    for _ in 0..3 {
        until(|| engine.load_stats().running == 0).await;
        assert_eq!(text(&engine, call("abc", 20)).await, expected[..20]);
        let before = got.len();
        got.push_str(&read_some(&mut slow, 1).await);
        assert!(got.len() - before <= 10, "at most the bound is unread");
    }
    while let GenerationEvent::Text(event) = slow.next().await.unwrap().unwrap() {
        got.push_str(&event.text);
    }
    assert_eq!(got, expected);
    engine.stop().unwrap();
}

#[tokio::test]
async fn readers_who_do_not_read_keep_nobody_out() {
    let (engine, _) = start(EngineConfig {
        workers: 1,
        max_batch: 1,
        max_queue: 1,
        max_unread_chars: 10,
        ..config()
    });
    // One whose text is parked, and one whose text is made.
    let mut unread = Vec::new();
    for max_chars in [1_000_000, 5] {
        unread.push(engine.generate(call("abc", max_chars)).await.unwrap());
    }
    // The worker may still be about to put them aside.
    let admitted = async {
        loop {
            match engine.generate(call("abc", 5)).await {
                Ok(stream) => break stream,
                Err(error) => assert!(matches!(error, GenerateError::Overloaded { .. })),
            }
            tokio::task::yield_now().await;
        }
    };
    let third = tokio::time::timeout(Duration::from_secs(20), admitted).await;
    assert_eq!(read(third.unwrap()).await.unwrap().finished.chars, 5);
    assert_eq!(engine.live_texts(), 2);
    for mut stream in unread {
        assert!(!read_some(&mut stream, 1).await.is_empty());
    }
    until(|| engine.live_texts() == 0).await;
    engine.stop().unwrap();
}

#[tokio::test]
async fn one_who_reads_nothing_is_given_up_and_his_session_stands_where_he_is() {
    let (engine, _) = start(EngineConfig {
        max_unread_chars: 10,
        stalled_reader: Duration::from_millis(30),
        ..config()
    });
    for max_chars in [1_000_000, 5] {
        let name = format!("s{max_chars}");
        let mut stream = engine
            .generate(session_call(&name, "abc", max_chars))
            .await
            .unwrap();
        let taken = read_some(&mut stream, 1).await.len() as u64;
        until(|| !engine.session(&id(&name)).unwrap().busy).await;
        assert_eq!(
            stream.next().await,
            Some(Err(GenerateError::Stalled(Duration::from_millis(30))))
        );
        assert_eq!(engine.session(&id(&name)).unwrap().position, 3 + taken);
    }
    assert_eq!(engine.live_texts(), 0);
    engine.stop().unwrap();
}

#[tokio::test]
async fn deleting_a_session_or_its_model_ends_the_text_as_cancelled() {
    let (engine, models) = start(config());
    let mut stream = engine
        .generate(session_call("s", "abc", 1_000_000))
        .await
        .unwrap();
    read_some(&mut stream, 1).await;
    engine.delete_session(&id("s")).unwrap();
    assert_eq!(end_of(stream).await, FinishReason::Cancelled);
    assert_eq!(engine.session(&id("s")), Err(SessionError::Unknown));

    let mut stream = engine.generate(call("abc", 1_000_000)).await.unwrap();
    read_some(&mut stream, 1).await;
    engine.drop_model(&models.resolve("m").unwrap());
    assert_eq!(end_of(stream).await, FinishReason::Cancelled);
    engine.stop().unwrap();
}

async fn end_of(mut stream: GenerationStream) -> FinishReason {
    loop {
        if let GenerationEvent::Finished(finished) = stream.next().await.unwrap().unwrap() {
            return finished.reason;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_generated_is_refused_with_the_reason_and_leaves_no_trace() {
    let (engine, _) = start(config());
    let refused = |call: GenerateCall| {
        let engine = engine.clone();
        async move { engine.generate(call).await.err().unwrap() }
    };
    assert_eq!(refused(call("", 5)).await, GenerateError::EmptyPrime);
    let error = refused(session_call("s", "abcé", 5)).await;
    assert_eq!(
        error.to_string(),
        "character 'é' (U+00E9) at position 3 is not in the model's vocabulary"
    );
    let mut other = call("a", 5);
    other.model = "nobody".to_owned();
    let error = refused(other).await;
    assert_eq!(error.to_string(), "there is no model \"nobody\"");
    assert_eq!(engine.session(&id("s")), Err(SessionError::Unknown));
    assert_eq!(engine.live_texts(), 0);
    engine.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_dropped_anywhere_leave_nothing_behind() {
    let (engine, _) = start(EngineConfig {
        max_queue: 2000,
        ..config()
    });
    let drops = (0..1000u64).map(|i| {
        let engine = engine.clone();
        async move {
            let call = session_call(&format!("s{}", i % 300), "abcdef", 1000);
            let Ok(mut stream) = engine.generate(call).await else {
                return;
            };
            for _ in 0..i % 7 {
                stream.next().await;
            }
        }
    });
    futures_util::future::join_all(drops).await;
    until(|| engine.live_texts() == 0 && engine.load_stats().running == 0).await;
    let load = engine.load_stats();
    assert_eq!(load.queued, 0);
    let page = engine.sessions(1000, None);
    assert!(page.sessions.iter().all(|session| !session.busy));
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_panic_of_a_worker_ends_the_texts_it_computed_and_nothing_else() {
    let (engine, models) = start(EngineConfig {
        workers: 1,
        ..config()
    });
    let expected = text(&engine, call("abc", 60)).await;
    let mut first = session_call("s", "abc", 1_000_000);
    first.seed = Some(1);
    let mut stream = engine.generate(first).await.unwrap();
    let mut got = read_some(&mut stream, 1).await;
    // A model whose last character has no weights: to feed it panics.
    let broken = ModelId {
        name: "broken".to_owned(),
        version: 1,
    };
    let mut model = model(broken.clone(), 1, 4);
    let more = ALPHABET.chars().chain(['z']);
    model.vocabulary = charlstm_model::vocabulary::Vocabulary::of(more);
    let model = std::sync::Arc::new(model);
    models.models.lock().unwrap().insert(broken, model);
    let mut harmful = call("z", 5);
    harmful.model = "broken".to_owned();
    let error = read(engine.generate(harmful).await.unwrap()).await.err();
    assert!(matches!(error, Some(GenerateError::Internal(_))));
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(GenerationEvent::Text(event)) => got.push_str(&event.text),
            Ok(_) => panic!("the text must fail"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, GenerateError::Internal(_)));
    let mut rest = session_call("s", "", 10);
    rest.model = "m".to_owned();
    let rest = whole(&engine, rest).await;
    assert_eq!(rest.started.position, 3 + got.len() as u64);
    let mut fresh = call("abc", 60);
    fresh.model = "m".to_owned();
    assert_eq!(text(&engine, fresh).await, expected);
    engine.stop().unwrap();
}
