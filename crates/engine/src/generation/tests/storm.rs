//! Isolation: whatever happens to the others, every session gives the text
//! that it would give alone.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::sessions::store::{SessionError, SessionLimits};

/// What a session must have given so far.
struct Track {
    seed: u64,
    /// Primes and texts as they followed each other: `(prime, chars)`.
    calls: Vec<(String, usize)>,
    text: String,
}

/// Moves one session on at random: whole calls, dropped calls, forks,
/// repeats, deletes. Every text is kept, to be compared afterwards.
async fn wander(engine: Engine, number: u64) -> Vec<Track> {
    let mut random = ChaCha8Rng::seed_from_u64(number);
    let mut tracks = Vec::new();
    let mut lives = 0;
    let mut name = format!("w{number}-{lives}");
    let mut track = new_track(number);
    for _ in 0..12 {
        let prime_len = random.random_range(0..6);
        let mut prime: String = (0..prime_len)
            .map(|_| ['a', 'b', 'c', ' '][random.random_range(0..4)])
            .collect();
        if track.calls.is_empty() {
            prime.push('a');
        }
        let chars = random.random_range(0..60);
        let mut call = session_call(&name, &prime, chars);
        call.seed = track.calls.is_empty().then_some(track.seed);
        let stream = match engine.generate(call).await {
            Ok(stream) => stream,
            Err(GenerateError::Session {
                error: SessionError::Evicted(_),
                ..
            }) => {
                lives += 1;
                name = format!("w{number}-{lives}");
                tracks.push(std::mem::replace(&mut track, new_track(number + lives)));
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let most = if random.random_bool(0.4) {
            random.random_range(0..40)
        } else {
            u64::MAX
        };
        let (text, done) = read_at_most(stream, most).await;
        // A call of which nothing was taken did not happen.
        if done || !text.is_empty() {
            track.calls.push((prime, text.len()));
            track.text.push_str(&text);
        }
        match random.random_range(0..10) {
            0 => {
                let fork = format!("{name}f");
                let _ = engine.delete_session(&id(&fork));
                if engine.fork_session(&id(&name), &id(&fork)).is_ok() {
                    name = fork;
                }
            }
            1 => {
                let _ = engine.delete_session(&id(&name));
                lives += 1;
                name = format!("w{number}-{lives}");
                tracks.push(std::mem::replace(&mut track, new_track(number + lives)));
            }
            _ => {}
        }
    }
    tracks.push(track);
    tracks
}

fn new_track(seed: u64) -> Track {
    Track {
        seed,
        calls: Vec::new(),
        text: String::new(),
    }
}

async fn read_at_most(mut stream: GenerationStream, most: u64) -> (String, bool) {
    let mut text = String::new();
    while (text.len() as u64) < most {
        match stream.next().await.unwrap().unwrap() {
            GenerationEvent::Started(_) => {}
            GenerationEvent::Text(event) => text.push_str(&event.text),
            GenerationEvent::Finished(_) => return (text, true),
        }
    }
    (text, false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_drops_deletes_forks_and_evictions_never_mixes_two_sessions() {
    let (stormy, _) = start(EngineConfig {
        max_batch: 6,
        max_queue: 100,
        max_unread_chars: 8,
        sessions: SessionLimits {
            // Few enough that some are let go, and that most have to drop
            // the state of their end.
            max_sessions: 28,
            max_ready: 3,
            ..SessionLimits::default()
        },
        ..config()
    });
    let wanderers = (0..24).map(|number| {
        let engine = stormy.clone();
        tokio::spawn(wander(engine, number * 1000))
    });
    let tracks = futures_util::future::join_all(wanderers).await;
    let (calm, _) = start(EngineConfig {
        workers: 1,
        max_batch: 1,
        ..config()
    });
    let mut compared = 0;
    for (number, track) in tracks.into_iter().flat_map(Result::unwrap).enumerate() {
        let mut text_alone = String::new();
        for (i, (prime, chars)) in track.calls.iter().enumerate() {
            let mut call = session_call(&format!("calm{number}"), prime, *chars as u64);
            call.seed = (i == 0).then_some(track.seed);
            text_alone.push_str(&text(&calm, call).await);
        }
        assert_eq!(track.text, text_alone);
        compared += track.text.len();
    }
    assert!(compared > 1000, "the storm must have generated something");
    until(|| stormy.live_texts() == 0).await;
    stormy.stop().unwrap();
    calm.stop().unwrap();
}
