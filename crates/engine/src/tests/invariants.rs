//! What holds for every session and every text.

use super::*;

#[tokio::test]
async fn the_text_is_that_of_a_plain_loop_with_the_same_random_numbers() {
    let (engine, models) = start(config());
    let prompt = "a fine sample of a prime".repeat(20);
    let mut call = call(&prompt, 300);
    call.logprobs = true;
    let got = whole(&engine, call).await;
    let (text, logprobs) = reference(&models, &prompt, 300, 1);
    assert_eq!(got.text, text);
    assert_eq!(got.logprobs, logprobs);
    assert_eq!(got.finished.reason, FinishReason::Length);
    assert_eq!(got.finished.position, prompt.len() as u64 + 300);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_prompt_too_long_for_the_calling_task_gives_the_same_text() {
    let (engine, models) = start(config());
    let prompt = "a fine sample ".repeat(400);
    let (straight, _) = reference(&models, &prompt, 20, 1);
    assert_eq!(text(&engine, call(&prompt, 20)).await, straight);
    engine.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_the_same_alone_and_in_a_full_batch() {
    let (engine, models) = start(config());
    let prompts: Vec<String> = (0..40)
        .map(|i| {
            let letters = "abcdefgh ijk".chars().cycle();
            letters.skip(i).take(1 + i * 7).collect()
        })
        .collect();
    let texts = prompts.iter().enumerate().map(|(i, prompt)| {
        let engine = engine.clone();
        let mut call = call(prompt, 20 + 5 * i as u64);
        call.seed = Some(i as u64);
        async move { text(&engine, call).await }
    });
    let texts = futures_util::future::join_all(texts).await;
    for (i, (prompt, text)) in prompts.iter().zip(&texts).enumerate() {
        let chars = 20 + 5 * i as u64;
        assert_eq!(*text, reference(&models, prompt, chars, i as u64).0);
    }
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn text_that_only_began_like_a_stop_string_is_sent_at_the_end() {
    let (engine, models) = start(config());
    let (straight, _) = reference(&models, "abc", 60, 1);
    let mut call = call("abc", 60);
    call.stop = vec![format!("{}\n\n\n\n\n", &straight[50..])];
    call.logprobs = true;
    let got = whole(&engine, call).await;
    assert_eq!(got.text, straight);
    assert_eq!(got.logprobs.len(), 60);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_score_is_that_of_one_character_at_a_time() {
    let (engine, models) = start(config());
    let scored_text = "the abc of a long example\n"
        .replace(|c| !ALPHABET.contains(c), "e")
        .repeat(40);
    // Also on a server that generates in int8.
    let precision = Some(Precision::Float32);
    let id = models.resolve("").unwrap();
    let model = models.load(&id, precision).unwrap();
    let tokens = model.vocabulary.encode(&scored_text).unwrap();
    let mut batch = DecodeBatch::new(Arc::clone(&model.weights), 1).unwrap();
    batch.push(&model.weights.zero_state());
    let mut nats = 0.0;
    for pair in tokens.windows(2) {
        let logits = batch.step(&[pair[0]]).unwrap();
        nats -= log_probability(logits, pair[1]);
    }
    let other = engine.generate(call("abc", 1_000_000)).await.unwrap();
    let scored = score(&engine, &[&scored_text]).await.unwrap();
    drop(other);
    assert_eq!(scored.chars, tokens.len() as u64 - 1);
    assert_eq!(scored.loss, nats / (tokens.len() as f64 - 1.0));
    let short = score(&engine, &["a"]).await;
    assert_eq!(short, Err(GenerateError::TextTooShort(1)));
    let empty = score(&engine, &[]).await;
    assert_eq!(empty, Err(GenerateError::TextTooShort(0)));
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn the_score_of_a_text_in_parts_is_that_of_the_text() {
    let (engine, _) = start(config());
    let text = "the abc of a long example\n".replace(|c| !ALPHABET.contains(c), "e");
    let whole = score(&engine, &[&text]).await.unwrap();
    for parts in [
        vec![&text[..1], &text[1..]],
        vec![&text[..7], "", &text[7..8], &text[8..]],
    ] {
        assert_eq!(score(&engine, &parts).await, Ok(whole));
    }
    let call = ScoreCall {
        logprobs: true,
        ..score_call()
    };
    let mut scorer = engine.score(call).await.unwrap();
    let mut logprobs = scorer.push(text[..9].to_owned()).await.unwrap().logprobs;
    assert_eq!(logprobs.len(), 8);
    logprobs.extend(scorer.push(text[9..].to_owned()).await.unwrap().logprobs);
    assert_eq!(logprobs.len() as u64, whole.chars);
    let mean = logprobs.iter().map(|l| f64::from(*l)).sum::<f64>() / logprobs.len() as f64;
    assert!((mean + whole.loss).abs() < 1e-6, "{mean} {}", whole.loss);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn unknown_characters_are_rejected_skipped_or_replaced() {
    let (engine, _) = start(config());
    let rejected = score(&engine, &["abc", "abZ"]).await.unwrap_err();
    assert!(
        rejected.to_string().contains("'Z' (U+005A) at position 5"),
        "{rejected}"
    );
    for (unknown, same, chars) in [
        (UnknownCharacters::Skip, "abcab", 4),
        (UnknownCharacters::Replace, "abecabe", 6),
    ] {
        let skipping = ScoreCall {
            unknown,
            ..score_call()
        };
        let mut scorer = engine.score(skipping).await.unwrap();
        scorer.push("abZ".to_owned()).await.unwrap();
        scorer.push("cabY".to_owned()).await.unwrap();
        let scored = scorer.finish().unwrap();
        assert_eq!((scored.unknown_chars, scored.chars), (2, chars));
        assert_eq!(scored.loss, score(&engine, &[same]).await.unwrap().loss);
        let prompt = GenerateCall {
            unknown,
            ..call("abZcabY", 50)
        };
        let got = whole(&engine, prompt.clone()).await;
        assert_eq!(got.started.unknown_chars, 2);
        let plain = GenerateCall {
            prompt: same.to_owned(),
            ..prompt
        };
        assert_eq!(got.text, whole(&engine, plain).await.text);
    }
    engine.stop().await.unwrap();
}

on_each_backend! {
    async fn two_calls_in_a_session_give_the_text_of_one(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let (straight, _) = reference(&models, "abc", 200, 1);
        let mut joined = text(&engine, seeded_call("s", "abc", 100)).await;
        let second = whole(&engine, session_call("s", "", 100)).await;
        assert_eq!(second.started.position, 103);
        assert_eq!(second.started.seed, 1);
        assert_eq!(second.finished.position, 203);
        joined.push_str(&second.text);
        assert_eq!(joined, straight);
        engine.stop().await.unwrap();
    }

    async fn a_prompt_fed_in_pieces_is_the_same_prompt(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let (straight, _) = reference(&models, "abcdef", 50, 9);
        let mut first = session_call("s", "ab", 0);
        first.seed = Some(9);
        let empty = whole(&engine, first).await;
        assert_eq!((empty.text.as_str(), empty.finished.position), ("", 2));
        text(&engine, session_call("s", "c", 0)).await;
        assert_eq!(text(&engine, session_call("s", "def", 50)).await, straight);
        engine.stop().await.unwrap();
    }

    async fn a_session_continues_on_the_version_it_started_on(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let (straight, _) = reference(&models, "abc", 40, 1);
        let begun = text(&engine, seeded_call("s", "abc", 20)).await;
        models.add("m", 2, 2);
        let mut second = session_call("s", "", 20);
        second.model = "m".to_owned();
        let second = whole(&engine, second).await;
        assert_eq!(second.started.model.version, 1);
        assert_eq!(begun + &second.text, straight);
        assert_eq!(whole(&engine, call("a", 1)).await.started.model.version, 2);

        let mut other = session_call("s", "", 1);
        other.model = "m@2".to_owned();
        let error = rejection(&engine, other).await;
        assert!(matches!(error, GenerateError::OtherModel { .. }), "{error}");
        let version = ModelId {
            name: "m".to_owned(),
            version: 1,
        };
        models.remove(&version);
        let gone = GenerateError::SessionModelGone {
            id: id("s"),
            model: version.clone(),
        };
        assert_eq!(rejection(&engine, session_call("s", "", 1)).await, gone);
        // Another file under the same name and version is another model.
        models.add("m", 1, 3);
        assert_eq!(rejection(&engine, session_call("s", "", 1)).await, gone);
        engine.stop().await.unwrap();
    }

    async fn a_session_takes_one_call_at_a_time(backend: &Backend) {
        let (engine, _) = backend.start(config());
        let mut running = engine
            .generate(session_call("s", "abc", 1_000_000))
            .await
            .unwrap();
        read_some(&mut running, 1).await;
        let busy = SessionError::Busy {
            leaving: false,
            replica: None,
        };
        assert_eq!(session_rejection(&engine, session_call("s", "", 5)).await, busy);
        drop(running);
        // A client that repeats a dropped call does not meet its own call.
        whole(&engine, session_call("s", "", 5)).await;
        engine.stop().await.unwrap();
    }

    async fn a_dropped_stream_leaves_its_session_at_the_last_text_taken(backend: &Backend) {
        for chars in [1, 5, 250, 256, 257, 700, 1500] {
            let (engine, models) = backend.start(config());
            let (straight, _) = reference(&models, "abc", 8000, 1);
            let mut stream = engine.generate(seeded_call("s", "abc", 4000)).await.unwrap();
            let taken = read_some(&mut stream, chars).await;
            drop(stream);
            let rest = whole(&engine, session_call("s", "", 100)).await;
            assert_eq!(rest.started.position, 3 + taken.len() as u64);
            let joined = taken + &rest.text;
            assert_eq!(joined, straight[..joined.len()]);
            // Dropped again at once: the beginning of the call stays.
            drop(engine.generate(session_call("s", "a", 10)).await.unwrap());
            let end = whole(&engine, session_call("s", "", 10)).await;
            assert_eq!(end.started.position, 3 + joined.len() as u64);
            assert_eq!(end.text, straight[joined.len()..][..10]);
            engine.stop().await.unwrap();
        }
    }

    async fn a_stop_string_ends_the_text_and_is_not_sent(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let (straight, _) = reference(&models, "abc", 300, 1);
        let stop = straight[100..104].to_owned();
        let first = straight.find(&stop).unwrap();
        let mut stopped = seeded_call("s", "abc", 300);
        // One that begins like the end, and one the model cannot write.
        stopped.stop = vec![format!("{}zzz", &straight[98..101]), stop, "é".to_owned()];
        let got = whole(&engine, stopped).await;
        assert_eq!(got.text, straight[..first]);
        assert_eq!(got.finished.reason, FinishReason::Stop);
        assert_eq!(got.finished.chars, first as u64);
        assert_eq!(got.finished.position, first as u64 + 4 + 3);
        assert_eq!(position(&engine, "s").await, first as u64 + 4 + 3);
        let rest = text(&engine, session_call("s", "", 50)).await;
        let after = &straight[first + 4..first + 54];
        assert_eq!(rest, after, "the next call continues after the stop string");
        engine.stop().await.unwrap();
    }

    async fn an_evicted_session_is_not_a_new_one(backend: &Backend) {
        let limits = SessionLimits {
            max_sessions: 2,
            ..SessionLimits::default()
        };
        let (engine, _) = backend.start_with(config(), limits);
        for name in ["a", "b", "c"] {
            text(&engine, session_call(name, "abc", 5)).await;
        }
        let error = rejection(&engine, session_call("a", "abc", 5)).await;
        assert_eq!(
            error.to_string(),
            "session a: session evicted: a limit (--max-sessions or --session-store-bytes) was \
             reached; delete it to use its id again"
        );
        engine.delete_session(&key("a")).await.unwrap();
        text(&engine, session_call("a", "abc", 5)).await;
        engine.stop().await.unwrap();
    }

    async fn a_fork_continues_like_its_origin_and_leaves_it_alone(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let (straight, _) = reference(&models, "abc", 90, 1);
        text(&engine, seeded_call("s", "abc", 30)).await;
        engine.fork_session(&key("s"), &id("t"), None).await.unwrap();
        for name in ["t", "s"] {
            let rest = text(&engine, session_call(name, "", 60)).await;
            assert_eq!(rest, straight[30..]);
        }
        engine.stop().await.unwrap();
    }

    async fn an_exported_session_continues_elsewhere_and_only_with_its_model(backend: &Backend) {
        let (engine, models) = backend.start(config());
        text(&engine, session_call("s", "abc", 30)).await;
        let exported = engine.export_session(&key("s")).await.unwrap();
        let straight = text(&engine, session_call("s", "", 30)).await;
        let (other, others) = backend.start(config());
        let portable = || PortableSession::from(exported.clone());
        let imported = other.import_session(key("t"), portable(), None).await.unwrap();
        // What is exported cannot be rewound.
        assert_eq!((imported.position, imported.last_call_position), (33, 33));
        assert_eq!(text(&other, session_call("t", "", 30)).await, straight);
        others.add("m", 1, 7);
        assert!(matches!(
            other.import_session(key("u"), portable(), None).await.unwrap_err(),
            ImportError::ModelDiffers(_)
        ));
        others.remove(&models.resolve("m").unwrap());
        assert!(matches!(
            other.import_session(key("u"), portable(), None).await.unwrap_err(),
            ImportError::ModelMissing(_)
        ));
        engine.stop().await.unwrap();
        other.stop().await.unwrap();
    }

    async fn an_imported_state_that_does_not_fit_its_model_is_rejected(backend: &Backend) {
        let (engine, _) = backend.start(config());
        text(&engine, session_call("s", "abc", 30)).await;
        let exported = engine.export_session(&key("s")).await.unwrap();
        let changes: [fn(&mut SessionState); 3] = [
            |state| state.network = Some(vec![0; 4].into()),
            |state| state.unfed = [0, 1_000_000].into_iter().collect(),
            |state| state.unfed = [ALPHABET.len() as u32].into_iter().collect(),
        ];
        for change in changes {
            let mut changed = PortableSession::from(exported.clone());
            change(&mut changed.end);
            assert_eq!(
                engine.import_session(key("t"), changed, None).await,
                Err(ImportError::StateMismatch)
            );
        }
        engine.stop().await.unwrap();
    }

    async fn two_owners_may_use_the_same_id(backend: &Backend) {
        let (engine, _) = backend.start(config());
        let mut other = session_call("s", "abc", 20);
        other.session = SessionSource::Stored(SessionKey::new(Owner::new("bob").unwrap(), id("s")));
        text(&engine, other).await;
        assert_eq!(session(&engine, "s").await, Err(SessionError::Unknown));
        text(&engine, session_call("s", "abc", 5)).await;
        assert_eq!(position(&engine, "s").await, 8);
        assert_eq!(all_sessions(&engine).await.len(), 2);
        engine.stop().await.unwrap();
    }
}
