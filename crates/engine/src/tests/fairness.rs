//! One caller that asks for more than there is, and others that ask for little.

use super::*;

fn call_by(caller: &str, max_chars: u64) -> GenerateCall {
    GenerateCall {
        caller: CallerId::from(caller),
        ..call("abc", max_chars)
    }
}

/// Reads texts in the background until they end.
fn drain(streams: Vec<GenerationStream>) -> Vec<tokio::task::JoinHandle<()>> {
    let drain = |mut stream: GenerationStream| {
        tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} })
    };
    streams.into_iter().map(drain).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_fills_batch_and_queue_keeps_nobody_else_waiting() {
    let config = EngineConfig {
        workers: 1,
        max_batch: 16,
        max_queue: 184,
        ..config()
    };
    let (engine, _) = start(config);
    let mut greedy = Vec::new();
    for _ in 0..200 {
        greedy.push(engine.generate(call_by("greedy", 1_000_000)).await.unwrap());
    }
    let error = rejection(&engine, call_by("greedy", 1)).await;
    assert!(matches!(error, GenerateError::Overloaded { .. }), "{error}");
    let readers = drain(greedy);
    // All texts of the other callers end, although none of those does.
    let expected = text(&engine, call_by("other 0", 200)).await;
    let mut others = Vec::new();
    for other in 0..20 {
        let call = call_by(&format!("other {other}"), 200);
        others.push(engine.generate(call).await.unwrap());
    }
    for other in others {
        assert_eq!(read(other).await.unwrap().text, expected, "as if alone");
    }
    for reader in readers {
        reader.abort();
    }
    engine.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prompt_of_one_caller_does_not_delay_the_others() {
    let config = EngineConfig {
        workers: 1,
        max_batch: 4,
        ..config()
    };
    let (engine, _) = start(config);
    let prompt = "abc".repeat(100_000);
    let mut greedy = Vec::new();
    for _ in 0..12 {
        let call = GenerateCall {
            prompt: prompt.clone(),
            ..call_by("greedy", 5)
        };
        greedy.push(engine.generate(call).await.unwrap());
    }
    let other = text(&engine, call_by("other", 50)).await;
    assert_eq!(other.len(), 50);
    let left = engine.stats().running + engine.stats().queued;
    assert!(left >= 11, "the others are still in prefill: {left}");
    drop(greedy);
    engine.stop().await.unwrap();
}
