//! The rules of safe retry: a repeated call gives the same text, and never
//! loses what was acknowledged.

use futures_util::FutureExt;

use super::*;

/// Reads `started` and at least `chars` characters, then drops the stream.
async fn cut_off(engine: &Engine, call: GenerateCall, chars: usize) -> (Started, String) {
    let mut stream = engine.generate(call).await.unwrap();
    let Some(Ok(GenerationEvent::Started(started))) = stream.next().await else {
        panic!("the call must start");
    };
    let text = read_some(&mut stream, chars).await;
    drop(stream);
    until_idle(engine).await;
    (started, text)
}

on_each_backend! {
    async fn the_same_call_repeated_from_its_beginning_gives_the_same_text(backend: &Backend) {
        let (engine, _) = backend.start(config());
        text(&engine, session_call("s", "abc", 30)).await;
        let original = session_call("s", "de", 30);
        let once = whole(&engine, original.clone()).await;
        let mut again = original.clone();
        again.expected_position = Some(33);
        let again = whole(&engine, again).await;
        assert_eq!(again.started, once.started);
        assert_eq!(again.text, once.text);
        assert_eq!(again.finished.position, 65);
        // With everything that `started` reports.
        let again = whole(&engine, repeat(&original, &once.started)).await;
        assert_eq!(again.text, once.text);

        let mut wrong = session_call("s", "", 1);
        wrong.expected_position = Some(34);
        assert_eq!(
            session_rejection(&engine, wrong).await,
            SessionError::PositionMismatch {
                expected: 34,
                position: 65,
                last_call_position: 33
            }
        );
        engine.stop().await.unwrap();
    }

    async fn a_cut_off_call_can_be_repeated_whole(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let (straight, _) = reference(&models, "abc", 400, 1);
        let original = seeded_call("s", "abc", 400);
        let (started, _) = cut_off(&engine, original.clone(), 100).await;
        let again = whole(&engine, repeat(&original, &started)).await;
        assert_eq!(again.text, straight);
        engine.stop().await.unwrap();
    }

    async fn a_repeat_whose_original_left_no_trace_gives_the_same_text(backend: &Backend) {
        // As after a crash: the client has `started` and text, and the session
        // is where it was before the call.
        let (engine, _) = backend.start(config());
        text(&engine, seeded_call("s", "abc", 30)).await;
        engine.fork_session(&key("s"), &id("before"), None).await.unwrap();
        let mut original = session_call("s", "d", 40);
        let lost = whole(&engine, original.clone()).await;
        original.session = SessionSource::Stored(key("before"));
        let again = whole(&engine, repeat(&original, &lost.started)).await;
        assert_eq!(again.text, lost.text);
        engine.stop().await.unwrap();
    }

    async fn a_repeat_of_a_first_call_uses_the_version_it_began_on(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let original = session_call("s", "abc", 1000);
        let (started, part) = cut_off(&engine, original.clone(), 20).await;
        models.add("m", 2, 2);
        // Also if the session was never committed.
        for _ in 0..2 {
            let again = whole(&engine, repeat(&original, &started)).await;
            assert_eq!(again.started, started);
            assert!(again.text.starts_with(&part));
            engine.delete_session(&key("s")).await.unwrap();
        }
        engine.stop().await.unwrap();
    }

    async fn an_interrupted_repeat_never_moves_the_session_back(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let (straight, _) = reference(&models, "abc", 600, 1);
        let original = seeded_call("s", "abc", 500);
        let done = whole(&engine, original.clone()).await;
        assert_eq!(position(&engine, "s").await, 503);
        // A late duplicate of the call, whose reader leaves early.
        cut_off(&engine, repeat(&original, &done.started), 5).await;
        assert_eq!(position(&engine, "s").await, 503);
        let rest = text(&engine, session_call("s", "", 100)).await;
        assert_eq!(rest, straight[500..]);
        engine.stop().await.unwrap();
    }

    async fn an_interrupted_repeat_that_came_further_moves_the_session_on(backend: &Backend) {
        let (engine, models) = backend.start(EngineConfig {
            max_unread_chars: 16,
            ..config()
        });
        let (straight, _) = reference(&models, "abc", 2100, 1);
        let original = seeded_call("s", "abc", 2000);
        let (started, _) = cut_off(&engine, original.clone(), 20).await;
        let first = position(&engine, "s").await;
        let (_, further) = cut_off(&engine, repeat(&original, &started), 300).await;
        let second = position(&engine, "s").await;
        assert!(second > first);
        assert_eq!(second, 3 + further.len() as u64);
        // And one that came less far changes nothing.
        cut_off(&engine, repeat(&original, &started), 5).await;
        assert_eq!(position(&engine, "s").await, second);
        let rest = text(&engine, session_call("s", "", 50)).await;
        assert_eq!(rest, straight[further.len()..][..50]);
        engine.stop().await.unwrap();
    }

    async fn a_rewind_with_other_parameters_is_a_new_branch(backend: &Backend) {
        let (engine, _) = backend.start(EngineConfig {
            max_unread_chars: 16,
            ..config()
        });
        let done = whole(&engine, seeded_call("s", "abc", 500)).await;
        let mut others = vec![
            seeded_call("s", "abd", 500),
            session_call("s", "abc", 500),
            seeded_call("s", "abc", 500),
        ];
        others[1].seed = Some(2);
        others[2].settings = SamplingSettings::new(0.5, 0, 1.0, 0.0).unwrap();
        for mut other in others {
            engine.fork_session(&key("s"), &id("t"), None).await.unwrap();
            other.session = SessionSource::Stored(key("t"));
            other.expected_position = Some(done.started.position);
            let (_, taken) = cut_off(&engine, other, 5).await;
            assert_eq!(position(&engine, "t").await, 3 + taken.len() as u64);
            engine.delete_session(&key("t")).await.unwrap();
        }
        engine.stop().await.unwrap();
    }

    async fn a_call_that_does_nothing_changes_nothing(backend: &Backend) {
        let (engine, _) = backend.start(config());
        text(&engine, session_call("s", "abc", 30)).await;
        let original = session_call("s", "d", 40);
        let once = whole(&engine, original.clone()).await;
        let before = session(&engine, "s").await.unwrap();
        let nothing = whole(&engine, session_call("s", "", 0)).await;
        assert_eq!(nothing.finished.position, before.position);
        let mut rewound = session_call("s", "", 0);
        rewound.expected_position = Some(before.last_call_position);
        let rewound = whole(&engine, rewound).await;
        assert_eq!(rewound.finished.position, before.position);
        let after = session(&engine, "s").await.unwrap();
        assert_eq!(after.position, before.position);
        assert_eq!(after.last_call_position, before.last_call_position);
        let again = whole(&engine, repeat(&original, &once.started)).await;
        assert_eq!(again.text, once.text);
        engine.stop().await.unwrap();
    }

    async fn a_late_duplicate_of_an_older_call_is_rejected(backend: &Backend) {
        let (engine, _) = backend.start(config());
        let first = seeded_call("s", "abc", 30);
        let started = whole(&engine, first.clone()).await.started;
        whole(&engine, session_call("s", "", 30)).await;
        assert_eq!(
            session_rejection(&engine, repeat(&first, &started)).await,
            SessionError::PositionMismatch {
                expected: 0,
                position: 63,
                last_call_position: 33
            }
        );
        engine.stop().await.unwrap();
    }

    async fn a_cut_off_call_is_before_the_characters_that_were_held_back(backend: &Backend) {
        let (engine, models) = backend.start(EngineConfig {
            max_unread_chars: 198,
            ..config()
        });
        let (straight, _) = reference(&models, "abc", 600, 1);
        let other = if straight[200..].starts_with('a') { 'b' } else { 'a' };
        let mut original = seeded_call("s", "abc", 600);
        original.stop = vec![
            // Holds back characters 195 to 200, until the next one differs.
            format!("{}{other}", &straight[195..200]),
            // Still holds back those from 198 on. The others fill the buffer.
            straight[198..230].to_owned(),
        ];
        let mut stream = engine.generate(original.clone()).await.unwrap();
        let Some(Ok(GenerationEvent::Started(_))) = stream.next().await else {
            panic!("the call must start");
        };
        // 201 characters are generated, of which 3 are held back.
        until(|| engine.stats().rows == 201 && engine.stats().running == 0).await;
        // Stopped before the reader takes text, so that no more is generated.
        let mut stop = std::pin::pin!(engine.stop());
        assert!(stop.as_mut().now_or_never().is_none());
        let taken = read_some(&mut stream, 198).await;
        assert_eq!(taken, straight[..198]);
        let finished = last_event(stream).await.unwrap();
        assert_eq!(finished.reason, FinishReason::Shutdown);
        assert_eq!(finished.position, 3 + 198);
        stop.await.unwrap();
        assert_eq!(position(&engine, "s").await, 3 + 198);
    }

    async fn a_seed_other_than_the_sessions_starts_its_own_sequence(backend: &Backend) {
        let (engine, _) = backend.start(config());
        text(&engine, seeded_call("s", "abc", 30)).await;
        engine.fork_session(&key("s"), &id("t"), None).await.unwrap();
        let mut reseeded = session_call("s", "", 60);
        reseeded.seed = Some(2);
        let one = whole(&engine, reseeded.clone()).await;
        assert_eq!(one.started.seed, 2);
        reseeded.session = SessionSource::Stored(key("t"));
        assert_eq!(text(&engine, reseeded).await, one.text);
        engine.stop().await.unwrap();
    }
}
