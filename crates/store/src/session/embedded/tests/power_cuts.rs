//! Power cuts at random moments under a mixed load.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::simulated_disk::SimulatedDisk;
use super::{open_with, small};
use crate::session::testing::fixture::{Fixture, abandon, key, state};
use crate::session::{
    Durability, EvictionReason, ForkRequest, SessionError, SessionId, SessionLimits,
};

/// Beginning and end of the last call of a session; `None`: there is none.
type Place = Option<(u64, u64)>;

/// What is known of a session.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// What was acknowledged.
    acknowledged: Place,
    /// It was reported as evicted.
    is_evicted: bool,
    /// What was asked for and not acknowledged.
    asked: Option<Place>,
}

type Book = BTreeMap<String, Known>;

/// Cuts for each kind of load. The whole suite runs many more.
fn cuts() -> u64 {
    let cuts = std::env::var("CHARLSTM_POWER_CUTS").ok();
    cuts.map_or(200, |cuts| cuts.parse().unwrap())
}

fn limits(max_sessions: u64) -> SessionLimits {
    SessionLimits {
        max_sessions,
        ..SessionLimits::default()
    }
}

#[tokio::test]
async fn after_power_cuts_every_acknowledged_change_is_there_and_nothing_else() {
    for seed in 0..cuts() {
        three_cuts(seed, limits(1_000)).await;
    }
}

#[tokio::test]
async fn after_power_cuts_evicted_sessions_are_known_as_evicted() {
    for seed in 0..cuts() {
        three_cuts(1_000_000 + seed, limits(8)).await;
    }
}

#[tokio::test]
async fn after_the_process_was_killed_every_acknowledged_change_is_there_and_nothing_else() {
    for seed in 0..cuts() / 2 {
        let seed = 2_000_000 + seed;
        let mut random = StdRng::seed_from_u64(seed);
        let disk = SimulatedDisk::new(seed);
        let mut book = Book::new();
        let fixture = open_with(&disk, limits(8), small(Durability::Committed)).unwrap();
        disk.cut_after(random.random_range(1..300));
        load(&fixture, &mut book, &mut random, 1_000).await;
        let killed = disk.kill(seed);
        drop(fixture);
        // What is shown now must not be lost by a power cut right after.
        let fixture = open_with(&killed, limits(8), small(Durability::Committed)).unwrap();
        check(&fixture, &mut book, seed).await;
        let cut = killed.restart(seed);
        drop(fixture);
        let fixture = open_with(&cut, limits(8), small(Durability::Committed)).unwrap();
        check(&fixture, &mut book, seed).await;
    }
}

/// Runs a load into a power cut three times, each time on what the cut before
/// has left, with cuts during some of the starts.
async fn three_cuts(seed: u64, limits: SessionLimits) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut disk = SimulatedDisk::new(seed);
    let mut book = Book::new();
    for _ in 0..3 {
        if random.random_bool(0.4) {
            disk.cut_after(random.random_range(0..40));
        }
        let fixture = loop {
            match open_with(&disk, limits, small(Durability::Committed)) {
                Ok(fixture) => break fixture,
                Err(error) => assert!(disk.is_off(), "{seed}: {error}"),
            }
            disk = disk.restart(seed);
        };
        if check(&fixture, &mut book, seed).await {
            disk.cut_after(random.random_range(1..300));
            load(&fixture, &mut book, &mut random, 1_000).await;
        }
        let restarted = disk.restart(random.random());
        drop(fixture);
        disk = restarted;
    }
    let fixture = open_with(&disk, limits, small(Durability::Committed)).unwrap();
    check(&fixture, &mut book, seed).await;
    // And it can be used as before.
    fixture.call("last", 1).await.unwrap();
    fixture.storage.shutdown().await.unwrap();
}

/// Holds what is there against what is known, and takes it over. Returns false
/// if the power failed meanwhile.
async fn check(fixture: &Fixture, book: &mut Book, seed: u64) -> bool {
    let mut present = 0;
    for (id, known) in book.iter_mut() {
        let found = fixture.export(id).await;
        let place = match found {
            Ok(record) => {
                let place = Some((record.begin.position, record.end.position));
                let (begin, end) = (record.begin.position, record.end.position);
                assert_eq!(record.begin, state(begin), "{seed} {id}");
                assert_eq!(record.end, state(end), "{seed} {id}");
                present += 1;
                place
            }
            Err(SessionError::Unknown) => None,
            Err(SessionError::Evicted(EvictionReason::Capacity)) => {
                assert!(
                    known.acknowledged.is_some() || known.asked.is_some() || known.is_evicted,
                    "{seed} {id}: evicted, {known:?}"
                );
                *known = Known {
                    is_evicted: true,
                    ..Known::default()
                };
                continue;
            }
            Err(SessionError::Unavailable(_)) => return false,
            Err(error) => panic!("{seed} {id}: {error}"),
        };
        let is_acknowledged = place == known.acknowledged && !known.is_evicted;
        let is_asked = known.asked == Some(place);
        assert!(
            is_acknowledged || is_asked,
            "{seed} {id}: {place:?}, {known:?}"
        );
        *known = Known {
            acknowledged: place,
            ..Known::default()
        };
    }
    let stats = fixture.storage.stats();
    assert_eq!((stats.sessions, stats.damaged), (present, 0), "{seed}");
    true
}

/// Several callers, each with sessions of its own, until the power is off or
/// so many calls are done.
async fn load(fixture: &Fixture, book: &mut Book, random: &mut StdRng, calls: u32) {
    let mut callers = Vec::new();
    for caller in 0..4 {
        let ids: Vec<String> = (0..4).map(|at| format!("c{caller}-{at}")).collect();
        let mut own: Book = BTreeMap::new();
        for id in &ids {
            own.insert(id.clone(), book.get(id).copied().unwrap_or_default());
        }
        let fixture = fixture.clone();
        let mut random = StdRng::seed_from_u64(random.random());
        callers.push(tokio::spawn(async move {
            for _ in 0..calls {
                let id = &ids[random.random_range(0..ids.len())];
                if call(&fixture, &mut own, id, &mut random).await.is_err() {
                    break;
                }
            }
            own
        }));
    }
    for caller in callers {
        book.extend(caller.await.unwrap());
    }
}

/// One random call. Fails when the power is off.
async fn call(
    fixture: &Fixture,
    book: &mut Book,
    id: &str,
    random: &mut StdRng,
) -> Result<(), SessionError> {
    let known = book[id];
    let chars = random.random_range(1..20);
    let (asked, outcome) = match random.random_range(0..10) {
        0 | 1 => {
            let deleted = fixture.storage.delete(&key(id));
            note(book, id, None);
            (None, deleted.await)
        }
        2 => {
            let ids: Vec<String> = book.keys().cloned().collect();
            let new = ids[random.random_range(0..ids.len())].clone();
            let forked = fixture.storage.fork(ForkRequest {
                key: key(id),
                new_id: SessionId::new(&new).unwrap(),
                owner_limit: None,
            });
            let place = known.acknowledged;
            if place.is_some() && new != *id {
                note(book, &new, place);
            }
            let outcome = match forked.await {
                // That is about the original.
                Err(SessionError::Evicted(_)) => Err(SessionError::Unknown),
                outcome => outcome.map(|_| ()),
            };
            return settle(book, &new, place, outcome);
        }
        3 => {
            let opened = fixture.open(id).await;
            let outcome = opened.map(abandon);
            return settle(book, id, known.acknowledged, outcome);
        }
        4 if known.acknowledged.is_some() => {
            let (begin, _) = known.acknowledged.unwrap();
            let opened = match fixture.open_at(id, begin).await {
                Ok(opened) => opened,
                Err(error) => return settle(book, id, known.acknowledged, Err(error)),
            };
            let place = Some((begin, begin + chars));
            note(book, id, place);
            let text = random.random_range(0..u32::MAX).to_string();
            let finished = fixture.cut_off(opened, chars, &text).await;
            (place, finished.map(|_| ()))
        }
        _ => {
            let opened = match fixture.open(id).await {
                Ok(opened) => opened,
                Err(error) => return settle(book, id, known.acknowledged, Err(error)),
            };
            let from = opened
                .start
                .as_ref()
                .map_or(0, |start| start.state.position);
            assert_eq!(from, known.acknowledged.map_or(0, |(_, end)| end));
            let place = Some((from, from + chars));
            note(book, id, place);
            let finished = fixture.finish(opened, chars, "p").await;
            (place, finished.map(|_| ()))
        }
    };
    settle(book, id, asked, outcome)
}

fn note(book: &mut Book, id: &str, asked: Place) {
    book.get_mut(id).unwrap().asked = Some(asked);
}

/// Takes an answer over.
fn settle(
    book: &mut Book,
    id: &str,
    asked: Place,
    outcome: Result<(), SessionError>,
) -> Result<(), SessionError> {
    let known = book.get_mut(id).unwrap();
    match outcome {
        Ok(()) => {
            *known = Known {
                acknowledged: asked,
                ..Known::default()
            };
            Ok(())
        }
        Err(SessionError::Evicted(EvictionReason::Capacity)) => {
            *known = Known {
                is_evicted: true,
                ..Known::default()
            };
            Ok(())
        }
        Err(SessionError::Unknown | SessionError::Exists | SessionError::Full) => {
            known.asked = None;
            Ok(())
        }
        Err(error @ SessionError::Unavailable(_)) => Err(error),
        Err(error) => panic!("{id}: {error}"),
    }
}
