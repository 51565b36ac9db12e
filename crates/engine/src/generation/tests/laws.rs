//! What is true of every session and every text.

use std::sync::Arc;

use super::*;
use crate::sessions::Reason;
use crate::sessions::store::{SessionError, SessionLimits};
use charlstm_model::decode_step::{DecodeBatch, HiddenState};
use charlstm_model::sampler::{Draws, RandomState, Sampler, log_probability};

/// The text that a plain loop over the stepper gives.
fn reference(models: &TestModels, prime: &str, chars: u64, seed: u64) -> (String, Vec<f32>) {
    let model = models.load(&models.resolve("").unwrap()).unwrap();
    let mut stepper = DecodeBatch::new(Arc::clone(&model.weights), 1).unwrap();
    stepper.push(&HiddenState::zeros(model.weights.architecture()));
    let mut draws = Draws::at(RandomState::seeded(seed));
    let mut sampler = Sampler::default();
    let tokens = model.vocabulary.encode(prime).unwrap();
    let (&last, fed) = tokens.split_last().unwrap();
    for &token in fed {
        stepper.step(&[token]).unwrap();
    }
    let mut token = last;
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    for _ in 0..chars {
        let logits = stepper.step(&[token]).unwrap();
        token = sampler.choose(&SamplingSettings::default(), logits, draws.uniform());
        logprobs.push(log_probability(logits, token) as f32);
        text.push(model.vocabulary.character(token));
    }
    (text, logprobs)
}

#[tokio::test]
async fn the_text_is_that_of_a_plain_loop_with_the_same_random_numbers() {
    let (engine, models) = start(config());
    let prime = "a fine sample of a prime".repeat(20);
    let mut call = call(&prime, 300);
    call.logprobs = true;
    let got = whole(&engine, call).await;
    let (text, logprobs) = reference(&models, &prime, 300, 1);
    assert_eq!(got.text, text);
    assert_eq!(got.logprobs, logprobs);
    assert_eq!(got.finished.reason, FinishReason::Length);
    assert_eq!(got.finished.position, prime.len() as u64 + 300);
    engine.stop().unwrap();
}

#[tokio::test]
async fn two_calls_in_a_session_give_the_text_of_one() {
    let (engine, models) = start(config());
    let (straight, _) = reference(&models, "abc", 200, 1);
    let mut first = session_call("s", "abc", 100);
    first.seed = Some(1);
    let mut joined = text(&engine, first).await;
    let second = whole(&engine, session_call("s", "", 100)).await;
    assert_eq!(second.started.position, 103);
    assert_eq!(second.started.seed, 1);
    assert_eq!(second.finished.position, 203);
    joined.push_str(&second.text);
    assert_eq!(joined, straight);
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_prime_fed_in_pieces_is_the_same_prime() {
    let (engine, models) = start(config());
    let (straight, _) = reference(&models, "abcdef", 50, 9);
    let mut first = session_call("s", "ab", 0);
    first.seed = Some(9);
    let empty = whole(&engine, first).await;
    assert_eq!((empty.text.as_str(), empty.finished.position), ("", 2));
    text(&engine, session_call("s", "c", 0)).await;
    assert_eq!(text(&engine, session_call("s", "def", 50)).await, straight);
    engine.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_the_same_alone_and_in_a_crowd() {
    let (engine, models) = start(config());
    let primes: Vec<String> = (0..40)
        .map(|i| {
            "abcdefgh ijk"
                .chars()
                .cycle()
                .skip(i)
                .take(1 + i * 7)
                .collect()
        })
        .collect();
    let texts = primes.iter().enumerate().map(|(i, prime)| {
        let engine = engine.clone();
        let mut call = call(prime, 20 + 5 * i as u64);
        call.seed = Some(i as u64);
        async move { text(&engine, call).await }
    });
    let texts = futures_util::future::join_all(texts).await;
    for (i, (prime, text)) in primes.iter().zip(&texts).enumerate() {
        let chars = 20 + 5 * i as u64;
        assert_eq!(*text, reference(&models, prime, chars, i as u64).0);
    }
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_session_goes_on_with_the_version_it_began_on() {
    let (engine, models) = start(config());
    let (straight, _) = reference(&models, "abc", 40, 1);
    let mut first = session_call("s", "abc", 20);
    first.seed = Some(1);
    let begun = text(&engine, first).await;
    models.add("m", 2, 2);
    let mut second = session_call("s", "", 20);
    second.model = "m".to_owned();
    let second = whole(&engine, second).await;
    assert_eq!(second.started.model.version, 1);
    assert_eq!(begun + &second.text, straight);
    assert_eq!(whole(&engine, call("a", 1)).await.started.model.version, 2);

    let mut other = session_call("s", "", 1);
    other.model = "m@2".to_owned();
    let error = engine.generate(other).await.err().unwrap();
    assert!(matches!(error, GenerateError::OtherModel { .. }));
    let version = ModelId {
        name: "m".to_owned(),
        version: 1,
    };
    models.remove(&version);
    let error = engine.generate(session_call("s", "", 1)).await.err();
    assert_eq!(
        error,
        Some(GenerateError::SessionModelGone {
            id: id("s"),
            model: version.clone()
        })
    );
    // Another file under the same name and version is another model.
    models.add("m", 1, 3);
    let error = engine.generate(session_call("s", "", 1)).await.err();
    assert!(matches!(
        error,
        Some(GenerateError::SessionModelGone { .. })
    ));
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_session_takes_one_call_at_a_time() {
    let (engine, _) = start(config());
    let mut under_way = engine
        .generate(session_call("s", "abc", 1_000_000))
        .await
        .unwrap();
    read_some(&mut under_way, 1).await;
    let error = engine.generate(session_call("s", "", 5)).await.err();
    assert_eq!(
        error,
        Some(GenerateError::Session {
            id: id("s"),
            error: SessionError::Busy { leaving: false }
        })
    );
    drop(under_way);
    engine.generate(session_call("s", "", 5)).await.unwrap();
    engine.stop().unwrap();
}

#[tokio::test]
async fn the_same_call_repeated_from_its_beginning_gives_the_same_text() {
    let (engine, _) = start(config());
    text(&engine, session_call("s", "abc", 30)).await;
    let once = whole(&engine, session_call("s", "de", 30)).await;
    let mut again = session_call("s", "de", 30);
    again.expected_position = Some(33);
    let again = whole(&engine, again).await;
    assert_eq!(again.started.position, 33);
    assert_eq!(again.text, once.text);
    assert_eq!(again.finished.position, 65);

    let mut wrong = session_call("s", "", 1);
    wrong.expected_position = Some(34);
    let error = engine.generate(wrong).await.err().unwrap();
    let GenerateError::Session { error, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(
        error,
        SessionError::PositionMismatch {
            expected: 34,
            position: 65,
            last_call_position: 33
        }
    );
    engine.stop().unwrap();
}

#[tokio::test]
async fn the_first_call_of_a_session_can_be_repeated_though_the_server_drew_the_seed() {
    let (engine, _) = start(config());
    let once = text(&engine, session_call("s", "abc", 30)).await;
    let mut again = session_call("s", "abc", 30);
    again.expected_position = Some(0);
    assert_eq!(text(&engine, again).await, once);
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_dropped_stream_leaves_the_session_after_the_last_text_taken() {
    // Long enough that states in the middle of the call come into play.
    for chars in [1, 2, 255, 256, 257, 700, 1500] {
        let (engine, models) = start(EngineConfig {
            max_unread_chars: 50,
            ..config()
        });
        let (straight, _) = reference(&models, "abc", 5000, 1);
        let mut first = session_call("s", "abc", 1_000_000);
        first.seed = Some(1);
        let mut stream = engine.generate(first).await.unwrap();
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
        engine.stop().unwrap();
    }
}

#[tokio::test]
async fn a_broken_call_can_be_repeated_whole_from_its_beginning() {
    let (engine, models) = start(config());
    let (straight, _) = reference(&models, "abc", 400, 1);
    let mut first = session_call("s", "abc", 400);
    first.seed = Some(1);
    let mut stream = engine.generate(first.clone()).await.unwrap();
    read_some(&mut stream, 100).await;
    drop(stream);
    first.expected_position = Some(0);
    assert_eq!(text(&engine, first).await, straight);
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_stop_text_ends_the_text_and_is_not_sent() {
    let (engine, models) = start(config());
    let (straight, _) = reference(&models, "abc", 300, 1);
    let stop = straight[100..104].to_owned();
    let first = straight.find(&stop).unwrap();
    let mut stopped = session_call("s", "abc", 300);
    stopped.seed = Some(1);
    // A text that begins like the end, and one the model cannot write.
    stopped.stop = vec![format!("{}zzz", &straight[98..101]), stop, "é".to_owned()];
    let got = whole(&engine, stopped).await;
    assert_eq!(got.text, straight[..first]);
    assert_eq!(got.finished.reason, FinishReason::Stop);
    assert_eq!(got.finished.chars, first as u64);
    assert_eq!(got.finished.position, first as u64 + 4 + 3);
    let rest = text(&engine, session_call("s", "", 50)).await;
    assert_eq!(
        rest,
        straight[first + 4..first + 54],
        "it goes on behind it"
    );
    engine.stop().unwrap();
}

#[tokio::test]
async fn what_only_began_like_a_stop_text_is_sent_at_the_end() {
    let (engine, models) = start(config());
    let (straight, _) = reference(&models, "abc", 60, 1);
    let mut call = call("abc", 60);
    call.stop = vec![format!("{}\n\n\n\n\n", &straight[50..])];
    call.logprobs = true;
    let got = whole(&engine, call).await;
    assert_eq!(got.text, straight);
    assert_eq!(got.logprobs.len(), 60);
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_session_that_was_let_go_is_not_a_new_one() {
    let (engine, _) = start(EngineConfig {
        sessions: SessionLimits {
            max_sessions: 2,
            ..SessionLimits::default()
        },
        ..config()
    });
    for name in ["a", "b", "c"] {
        text(&engine, session_call(name, "abc", 5)).await;
    }
    let error = engine.generate(session_call("a", "abc", 5)).await.err();
    assert_eq!(
        error,
        Some(GenerateError::Session {
            id: id("a"),
            error: SessionError::Evicted(Reason::Capacity)
        })
    );
    engine.stop().unwrap();
}

#[tokio::test]
async fn a_fork_goes_on_like_its_origin_and_leaves_it_alone() {
    let (engine, models) = start(config());
    let (straight, _) = reference(&models, "abc", 90, 1);
    let mut first = session_call("s", "abc", 30);
    first.seed = Some(1);
    text(&engine, first).await;
    engine.fork_session(&id("s"), &id("t")).unwrap();
    assert_eq!(
        text(&engine, session_call("t", "", 60)).await,
        straight[30..]
    );
    assert_eq!(
        text(&engine, session_call("s", "", 60)).await,
        straight[30..]
    );
    engine.stop().unwrap();
}

#[tokio::test]
async fn sessions_go_on_bit_for_bit_after_a_stop_and_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        folder: Some(folder.path().to_owned()),
        ..config()
    };
    let (engine, models) = start(config.clone());
    let (straight, _) = reference(&models, "abc", 2000, 1);
    let seeded = |name: &str, chars| {
        let mut call = session_call(name, "abc", chars);
        call.seed = Some(1);
        call
    };
    text(&engine, seeded("done", 40)).await;
    let mut stream = engine.generate(seeded("running", 1_000_000)).await.unwrap();
    let mut taken = read_some(&mut stream, 300).await;
    let stopper = engine.clone();
    let stopped = tokio::task::spawn_blocking(move || stopper.stop());
    let finished = loop {
        match stream.next().await.unwrap().unwrap() {
            GenerationEvent::Text(event) => taken.push_str(&event.text),
            GenerationEvent::Finished(finished) => break finished,
            GenerationEvent::Started(_) => {}
        }
    };
    stopped.await.unwrap().unwrap();
    assert_eq!(finished.reason, FinishReason::Shutdown);
    assert_eq!(finished.position, 3 + taken.len() as u64);
    let refused = engine.generate(call("a", 1)).await.err();
    assert_eq!(refused, Some(GenerateError::Stopping));

    let again = Engine::start(config, models).unwrap();
    assert_eq!(
        text(&again, session_call("done", "", 40)).await,
        straight[40..80]
    );
    let rest = text(&again, session_call("running", "", 40)).await;
    if taken.len() + 40 <= straight.len() {
        assert_eq!(rest, straight[taken.len()..taken.len() + 40]);
    }
    again.stop().unwrap();
}

#[tokio::test]
async fn an_exported_session_goes_on_elsewhere_and_only_with_its_model() {
    let (engine, models) = start(config());
    text(&engine, session_call("s", "abc", 30)).await;
    let bytes = engine.export_session(&id("s")).unwrap();
    let straight = text(&engine, session_call("s", "", 30)).await;
    let (other, others) = start(config());
    let facts = other.import_session(&bytes, Some(id("t"))).await.unwrap();
    assert_eq!((facts.position, facts.last_call_position), (33, 0));
    assert_eq!(text(&other, session_call("t", "", 30)).await, straight);
    others.add("m", 1, 7);
    assert!(matches!(
        other.import_session(&bytes, None).await.unwrap_err(),
        ImportError::ModelDiffers(_)
    ));
    others.remove(&models.resolve("m").unwrap());
    assert!(matches!(
        other.import_session(&bytes, None).await.unwrap_err(),
        ImportError::ModelMissing(_)
    ));
    engine.stop().unwrap();
    other.stop().unwrap();
}

#[tokio::test]
async fn a_score_is_that_of_one_character_at_a_time() {
    let (engine, models) = start(config());
    let scored_text = "the abc of a long example\n"
        .replace(|c| !ALPHABET.contains(c), "e")
        .repeat(40);
    let model = models.load(&models.resolve("").unwrap()).unwrap();
    let tokens = model.vocabulary.encode(&scored_text).unwrap();
    let mut stepper = DecodeBatch::new(Arc::clone(&model.weights), 1).unwrap();
    stepper.push(&HiddenState::zeros(model.weights.architecture()));
    let mut nats = 0.0;
    for pair in tokens.windows(2) {
        let logits = stepper.step(&[pair[0]]).unwrap();
        nats -= log_probability(logits, pair[1]);
    }
    let crowd = engine.generate(call("abc", 1_000_000)).await.unwrap();
    let scored = engine
        .score(ScoreCall {
            model: "m".to_owned(),
            text: scored_text,
            deadline: None,
        })
        .await
        .unwrap();
    drop(crowd);
    assert_eq!(scored.chars, tokens.len() as u64 - 1);
    assert_eq!(scored.loss, nats / (tokens.len() as f64 - 1.0));
    let short = engine
        .score(ScoreCall {
            model: String::new(),
            text: "a".to_owned(),
            deadline: None,
        })
        .await;
    assert_eq!(short, Err(GenerateError::TextTooShort(1)));
    engine.stop().unwrap();
}
