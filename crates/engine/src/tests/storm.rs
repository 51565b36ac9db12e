//! Isolation: whatever happens to the others, every session gives the text
//! that it would give alone.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// What a session must have given so far.
struct Track {
    seed: u64,
    /// Prompts and lengths of the texts, in order.
    calls: Vec<(String, usize)>,
    text: String,
}

/// Uses one session at random: whole calls, dropped calls, interrupted
/// repeats, forks, deletions. Every text is kept, to be compared afterwards.
async fn wander(engine: Engine, number: u64) -> Vec<Track> {
    let mut random = ChaCha8Rng::seed_from_u64(number);
    let mut tracks = Vec::new();
    let mut lives = 0;
    let mut name = format!("w{number}-{lives}");
    let mut track = new_track(number);
    for _ in 0..12 {
        let prompt_len = random.random_range(0..6);
        let mut prompt: String = (0..prompt_len)
            .map(|_| ['a', 'b', 'c', ' '][random.random_range(0..4)])
            .collect();
        if track.calls.is_empty() {
            prompt.push('a');
        }
        let chars = random.random_range(0..60);
        let mut call = session_call(&name, &prompt, chars);
        call.seed = track.calls.is_empty().then_some(track.seed);
        let stream = match engine.generate(call.clone()).await {
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
        let max_chars = if random.random_bool(0.4) {
            random.random_range(0..40)
        } else {
            u64::MAX
        };
        let (started, text, is_done) = read_at_most(stream, max_chars).await;
        // A call of which nothing was taken did not happen.
        if is_done || !text.is_empty() {
            track.calls.push((prompt, text.len()));
            track.text.push_str(&text);
        }
        if let Some(started) = started
            && is_done
            && random.random_bool(0.3)
        {
            // A late duplicate whose reader leaves changes nothing.
            if let Ok(stream) = engine.generate(repeat(&call, &started)).await {
                let (_, part, _) = read_at_most(stream, random.random_range(0..20)).await;
                assert!(text.starts_with(&part));
            }
        }
        match random.random_range(0..10) {
            0 => {
                let fork = format!("{name}f");
                let _ = engine.delete_session(&key(&fork)).await;
                if engine
                    .fork_session(&key(&name), &id(&fork), None)
                    .await
                    .is_ok()
                {
                    name = fork;
                }
            }
            1 => {
                let _ = engine.delete_session(&key(&name)).await;
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

async fn read_at_most(
    mut stream: GenerationStream,
    max_chars: u64,
) -> (Option<Started>, String, bool) {
    let mut started = None;
    let mut text = String::new();
    while (text.len() as u64) < max_chars {
        match stream.next().await.unwrap().unwrap() {
            GenerationEvent::Started(event) => started = Some(event),
            GenerationEvent::Text(event) => text.push_str(&event.text),
            GenerationEvent::Finished(_) => return (started, text, true),
        }
    }
    (started, text, false)
}

on_each_backend! {
    async fn drops_deletions_forks_and_evictions_never_mix_two_sessions(backend: &Backend) {
        let limits = SessionLimits {
            // Few enough that some are evicted.
            max_sessions: 28,
            ..SessionLimits::default()
        };
        let storm_config = EngineConfig {
            max_batch: 6,
            max_queue: 100,
            max_unread_chars: 8,
            ..config()
        };
        let (stormy, _) = backend.start_with(storm_config, limits);
        let wanderers = (0..24).map(|number| {
            let engine = stormy.clone();
            tokio::spawn(wander(engine, number * 1000))
        });
        let tracks = futures_util::future::join_all(wanderers).await;
        let calm_config = EngineConfig {
            workers: 1,
            max_batch: 1,
            ..config()
        };
        let (calm, _) = start_in(backend.precision, calm_config, Backend::memory().open(SessionLimits::default()));
        let mut compared = 0;
        for (number, track) in tracks.into_iter().flat_map(Result::unwrap).enumerate() {
            let mut text_alone = String::new();
            for (i, (prompt, chars)) in track.calls.iter().enumerate() {
                let mut call = session_call(&format!("calm{number}"), prompt, *chars as u64);
                call.seed = (i == 0).then_some(track.seed);
                text_alone.push_str(&text(&calm, call).await);
            }
            assert_eq!(track.text, text_alone);
            compared += track.text.len();
        }
        assert!(compared > 1000, "the storm must have generated something");
        until_idle(&stormy).await;
        stormy.stop().await.unwrap();
        calm.stop().await.unwrap();
    }
}
