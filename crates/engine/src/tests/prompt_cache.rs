//! Prompts that begin like earlier ones.

use super::*;

/// Characters that were fed and not found in the cache.
fn prefilled(engine: &Engine) -> u64 {
    engine.stats().prefill_chars
}

on_each_backend! {
    async fn a_repeated_prompt_is_not_fed_again_and_gives_the_same_text(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let prompt = "a fine sample of a prime ".repeat(40);
        let (expected, _) = reference(&models, &prompt, 50, 1);
        assert_eq!(text(&engine, call(&prompt, 50)).await, expected);
        assert_eq!(prefilled(&engine), 999);
        // Also in a session, and after its first call was rewound.
        let first = seeded_call("s", &prompt, 50);
        let done = whole(&engine, first.clone()).await;
        assert_eq!(done.text, expected);
        let again = whole(&engine, repeat(&first, &done.started)).await;
        assert_eq!(again.text, expected);
        assert_eq!(again.finished.position, 1050);
        assert_eq!(prefilled(&engine), 999);
        let stats = engine.stats().prompt_cache;
        assert_eq!((stats.hits, stats.misses), (2, 1));
        assert!(stats.bytes > 0);
        // What follows in the session is not a prompt from the zero state.
        text(&engine, session_call("s", &prompt, 5)).await;
        assert_eq!(engine.stats().prompt_cache.hits, 2);
        engine.stop().await.unwrap();
    }

    async fn prompts_that_share_their_beginning_share_its_state(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let beginning = "a fine sample of a prime ".repeat(40);
        text(&engine, call(&beginning, 5)).await;
        let before = prefilled(&engine);
        for end in ["abc", "once more and again", &beginning] {
            let prompt = format!("{}{end}", &beginning[..900]);
            let (expected, _) = reference(&models, &prompt, 30, 1);
            assert_eq!(text(&engine, call(&prompt, 30)).await, expected);
        }
        assert_eq!(prefilled(&engine) - before, 134 + 150 + 1131);
        engine.stop().await.unwrap();
    }

    async fn calls_of_other_owners_precisions_and_models_feed_their_prompts_themselves(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let prompt = "a fine sample of a prime ".repeat(10);
        text(&engine, call(&prompt, 5)).await;
        let mut others = vec![call(&prompt, 5), call(&prompt, 5), call(&prompt, 5)];
        others[0].owner = Owner::new("bob").unwrap();
        others[1].precision = Some(precision::other(backend.precision));
        models.add("m", 2, 2);
        others[2].model = "m@2".to_owned();
        let mut fed = prefilled(&engine);
        for call in others {
            text(&engine, call.clone()).await;
            fed += 249;
            assert_eq!(prefilled(&engine), fed);
            text(&engine, call).await;
            assert_eq!(prefilled(&engine), fed);
        }
        engine.stop().await.unwrap();
    }

    async fn many_calls_with_few_prompts_get_the_texts_of_their_prompts(backend: &Backend) {
        let small = EngineConfig {
            // Some states of one precision: they displace each other.
            prompt_cache_bytes: 3_000,
            ..config()
        };
        let (engine, models) = backend.start(small);
        let prompts: Vec<String> = (0..6)
            .map(|i| "once more a mild fog is ".repeat(20 + i)[i..].to_owned())
            .collect();
        let expected: Vec<String> = prompts
            .iter()
            .map(|prompt| reference(&models, prompt, 20, 1).0)
            .collect();
        let texts = (0..60).map(|i| {
            let (engine, call) = (engine.clone(), call(&prompts[i * 7 % 6], 20));
            async move { text(&engine, call).await }
        });
        let texts = futures_util::future::join_all(texts).await;
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(*text, expected[i * 7 % 6]);
        }
        assert!(engine.stats().prompt_cache.bytes <= 3_000);
        engine.stop().await.unwrap();
    }
}
