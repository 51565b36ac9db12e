//! What happens when there is too much, too slow, too late, or gone.

use std::time::Instant;

use super::*;

/// One slot, and a text in it that is never parked.
fn one_slot() -> EngineConfig {
    EngineConfig {
        workers: 1,
        max_batch: 1,
        max_unread_chars: usize::MAX,
        ..config()
    }
}

/// Occupies the slot of [`one_slot`].
async fn occupy(engine: &Engine) -> GenerationStream {
    let mut running = engine.generate(call("abc", 1_000_000)).await.unwrap();
    read_some(&mut running, 1).await;
    running
}

/// Starts a call, again while the engine is overloaded.
async fn generate_when_free(engine: &Engine, call: GenerateCall) -> GenerationStream {
    let admitted = async {
        loop {
            match engine.generate(call.clone()).await {
                Ok(stream) => break stream,
                Err(error) => assert!(matches!(error, GenerateError::Overloaded { .. })),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, admitted).await.unwrap()
}

#[tokio::test]
async fn a_full_engine_rejects_calls_at_once_and_accepts_them_when_there_is_room() {
    let (engine, _) = start(EngineConfig {
        max_queue: 1,
        ..one_slot()
    });
    let running = occupy(&engine).await;
    let queued = engine.generate(call("abc", 5)).await.unwrap();
    until(|| engine.stats().queued == 1).await;
    let error = rejection(&engine, call("abc", 5)).await;
    assert!(matches!(error, GenerateError::Overloaded { .. }), "{error}");
    drop(running);
    assert_eq!(read(queued).await.unwrap().finished.chars, 5);
    assert_eq!(text(&engine, call("abc", 5)).await.len(), 5);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn prompts_that_wait_are_bounded_in_characters() {
    let max = 20_000;
    let (engine, _) = start(EngineConfig {
        max_prompt_chars: max,
        max_queued_chars: 100_000,
        ..one_slot()
    });
    let too_long = call(&"a".repeat(max + 1), 5);
    assert_eq!(
        rejection(&engine, too_long).await,
        GenerateError::TextTooLong {
            chars: max + 1,
            max
        }
    );
    let running = occupy(&engine).await;
    let long = "a".repeat(max);
    let mut queued = Vec::new();
    for _ in 0..5 {
        queued.push(engine.generate(call(&long, 5)).await.unwrap());
    }
    let error = rejection(&engine, call("ab", 5)).await;
    assert!(matches!(error, GenerateError::Overloaded { .. }), "{error}");
    let error = score(&engine, &[&long]).await.unwrap_err();
    assert!(matches!(error, GenerateError::Overloaded { .. }), "{error}");
    // A call frees its share once its prompt is fed.
    drop(queued.pop());
    drop(running);
    let short = generate_when_free(&engine, call("ab", 5)).await;
    for stream in queued.into_iter().chain([short]) {
        read(stream).await.unwrap();
    }
    score(&engine, &[&long]).await.unwrap();
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_leaves_the_queue_frees_its_place_and_its_session() {
    let (engine, _) = start(EngineConfig {
        max_queue: 1,
        ..one_slot()
    });
    let running = occupy(&engine).await;
    let queued = engine.generate(session_call("s", "abc", 5)).await.unwrap();
    drop(queued);
    let queued = generate_when_free(&engine, session_call("s", "abc", 5)).await;
    drop(running);
    read(queued).await.unwrap();
    until_idle(&engine).await;
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_deadline_is_noticed_in_the_queue() {
    let (engine, _) = start(one_slot());
    let running = occupy(&engine).await;
    let mut late = session_call("s", "abc", 5);
    late.deadline = Some(Instant::now() + Duration::from_millis(30));
    let mut stream = engine.generate(late).await.unwrap();
    assert_eq!(stream.next().await, Some(Err(GenerateError::Deadline)));
    assert_eq!(session(&engine, "s").await, Err(SessionError::Unknown));
    drop(running);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_deadline_is_noticed_during_prefill_and_while_generating() {
    let (engine, _) = start(config());
    for (prompt, max_chars) in [("abc".repeat(300_000), 10), ("abc".to_owned(), 1_000_000)] {
        let mut late = call(&prompt, max_chars);
        late.deadline = Some(Instant::now() + Duration::from_millis(50));
        let stream = engine.generate(late).await.unwrap();
        assert_eq!(last_event(stream).await, Err(GenerateError::Deadline));
    }
    until(|| engine.stats().running == 0).await;
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_is_parked_and_loses_nothing() {
    let (engine, _) = start(EngineConfig {
        max_unread_chars: 10,
        ..one_slot()
    });
    let expected = text(&engine, call("abc", 500)).await;
    let mut slow = engine.generate(call("abc", 500)).await.unwrap();
    let mut got = read_some(&mut slow, 1).await;
    // While it is parked, its slot is free for others.
    for _ in 0..3 {
        until(|| engine.stats().running == 0).await;
        assert_eq!(text(&engine, call("abc", 20)).await, expected[..20]);
        let before = got.len();
        got.push_str(&read_some(&mut slow, 1).await);
        assert!(got.len() - before <= 10, "unread text is bounded");
    }
    while let GenerationEvent::Text(event) = slow.next().await.unwrap().unwrap() {
        got.push_str(&event.text);
    }
    assert_eq!(got, expected);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn readers_that_do_not_read_do_not_block_others() {
    let (engine, _) = start(EngineConfig {
        max_queue: 1,
        max_unread_chars: 10,
        ..one_slot()
    });
    // One whose text is parked, and one whose text is complete.
    let mut unread = Vec::new();
    for max_chars in [1_000_000, 5] {
        unread.push(engine.generate(call("abc", max_chars)).await.unwrap());
    }
    let third = generate_when_free(&engine, call("abc", 5)).await;
    assert_eq!(read(third).await.unwrap().finished.chars, 5);
    assert_eq!(engine.live_generations(), 2);
    for mut stream in unread {
        assert!(!read_some(&mut stream, 1).await.is_empty());
    }
    until_idle(&engine).await;
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_stalls_is_ended_and_its_session_is_at_its_position() {
    let limit = Duration::from_millis(30);
    let (engine, _) = start(EngineConfig {
        max_unread_chars: 10,
        reader_timeout: limit,
        ..config()
    });
    for max_chars in [1_000_000, 15] {
        let name = format!("s{max_chars}");
        let call = session_call(&name, "abc", max_chars);
        let mut stream = engine.generate(call).await.unwrap();
        let taken = read_some(&mut stream, 1).await.len() as u64;
        until_idle(&engine).await;
        assert_eq!(
            stream.next().await,
            Some(Err(GenerateError::Stalled(limit)))
        );
        assert_eq!(position(&engine, &name).await, 3 + taken);
    }
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn dropping_a_model_ends_its_generations_as_cancelled() {
    let (engine, models) = start(config());
    for session in [SessionSource::None, SessionSource::Stored(key("s"))] {
        let mut call = call("abc", 1_000_000);
        call.session = session;
        let mut stream = engine.generate(call).await.unwrap();
        let mut taken = read_some(&mut stream, 1).await.len() as u64;
        engine.drop_model(&models.resolve("m").unwrap());
        let finished = loop {
            match stream.next().await.unwrap().unwrap() {
                GenerationEvent::Text(event) => taken += event.text.len() as u64,
                GenerationEvent::Finished(finished) => break finished,
                GenerationEvent::Started(_) => panic!("the call has started"),
            }
        };
        assert_eq!(finished.reason, FinishReason::Cancelled);
        assert_eq!((finished.chars, finished.position), (taken, 3 + taken));
    }
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn an_invalid_call_is_rejected_with_the_reason_and_leaves_no_trace() {
    let (engine, _) = start(config());
    assert_eq!(
        rejection(&engine, call("", 5)).await,
        GenerateError::EmptyPrompt
    );
    assert_eq!(
        rejection(&engine, session_call("s", "", 5)).await,
        GenerateError::EmptyPrompt
    );
    let error = rejection(&engine, session_call("s", "abcé", 5)).await;
    assert_eq!(
        error.to_string(),
        "character 'é' (U+00E9) at position 3 is not in the model's vocabulary"
    );
    let mut other = call("a", 5);
    other.model = "nobody".to_owned();
    let error = rejection(&engine, other).await;
    assert_eq!(error.to_string(), "no model \"nobody\"");
    assert_eq!(session(&engine, "s").await, Err(SessionError::Unknown));
    assert_eq!(engine.live_generations(), 0);
    assert_eq!(engine.stats().sessions.in_use, 0);
    engine.stop().await.unwrap();
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
    until(|| engine.live_generations() == 0 && engine.stats().running == 0).await;
    let stats = engine.stats();
    assert_eq!(stats.queued, 0);
    assert_eq!(
        (stats.sessions.in_use, stats.sessions.pending_creates),
        (0, 0)
    );
    assert!(
        all_sessions(&engine)
            .await
            .iter()
            .all(|session| !session.busy)
    );
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_panic_in_a_turn_ends_the_generations_it_computed_and_nothing_else() {
    let (engine, models) = start(EngineConfig {
        workers: 1,
        ..config()
    });
    let expected = text(&engine, call("abc", 60)).await;
    let call_of_m = |mut call: GenerateCall| {
        call.model = "m".to_owned();
        call
    };
    let running = call_of_m(seeded_call("s", "abc", 1_000_000));
    let mut stream = engine.generate(running).await.unwrap();
    let mut got = read_some(&mut stream, 1).await;
    // A model whose last character has no weights: feeding it panics.
    let broken = ModelId {
        name: "broken".to_owned(),
        version: 1,
    };
    let broken_in = |device: &dyn DecodeDevice| {
        let mut model = model(&broken, 1, &parameters(1, 4), device);
        let more = ALPHABET.chars().chain(['z']);
        model.vocabulary = Vocabulary::of(more);
        Arc::new(model)
    };
    let model = TestModel {
        float32: broken_in(&Processor::default()),
        int8: broken_in(&Int8Processor::default()),
    };
    models.models.lock().unwrap().insert(broken, model);
    let mut harmful = call("z", 5);
    harmful.model = "broken".to_owned();
    let error = last_event(engine.generate(harmful).await.unwrap()).await;
    assert!(matches!(error, Err(GenerateError::Internal(_))));
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(GenerationEvent::Text(event)) => got.push_str(&event.text),
            Ok(_) => panic!("the text must fail"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, GenerateError::Internal(_)), "{error}");
    let rest = whole(&engine, call_of_m(session_call("s", "", 10))).await;
    assert_eq!(rest.started.position, 3 + got.len() as u64);
    assert_eq!(text(&engine, call_of_m(call("abc", 60))).await, expected);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_takes_small_pieces_gets_the_same_text_and_positions() {
    let (engine, models) = snapshots::start_without_storage();
    let (expected, _) = reference(&models, "abc", 200, 1);
    let call = GenerateCall {
        logprobs: true,
        ..call("abc", 200)
    };
    let mut events = engine.generate(call).await.unwrap().with_max_chars(3);
    let mut text = String::new();
    while let Some(event) = events.next().await {
        if let GenerationEvent::Text(piece) = event.unwrap() {
            let chars = piece.text.chars().count();
            assert!((1..=3).contains(&chars), "{chars}");
            assert_eq!(piece.logprobs.len(), chars);
            text.push_str(&piece.text);
            assert_eq!(piece.position, 3 + text.chars().count() as u64);
        }
    }
    assert_eq!(text, expected);
}
