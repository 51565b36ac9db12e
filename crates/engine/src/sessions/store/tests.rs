#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::sessions::{SessionState, TokenIds};
use charlstm_model::decode_step::HiddenState;
use charlstm_repository::ModelId;

const STATE_LEN: usize = 16;

fn id(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn key() -> ModelKey {
    ModelKey {
        id: ModelId {
            name: "m".to_owned(),
            version: 3,
        },
        digest: [1; 32],
    }
}

fn limits() -> SessionLimits {
    SessionLimits {
        max_sessions: 3,
        max_idle: Duration::from_secs(60),
        ..SessionLimits::default()
    }
}

fn point(position: u64) -> SessionState {
    SessionState {
        hidden: Some(Arc::new(HiddenState(
            vec![position as f32; STATE_LEN].into(),
        ))),
        unfed: TokenIds::from([7].as_slice()),
        random: charlstm_model::sampler::RandomState::seeded(1),
        position,
    }
}

/// A call that moves a session ten characters on.
fn call(store: &mut SessionStore, name: &str, now: Instant) {
    let opening = store.open(&id(name), None, now).unwrap();
    let begin = opening
        .kept
        .map_or_else(|| SessionState::origin(1), |(_, point)| point);
    let end = point(begin.position + 10);
    let commit = Commit {
        model: key(),
        begin,
        end,
        call: Some(TokenIds::from([1; 10].as_slice())),
    };
    store.commit(opening.lease, commit, now);
}

#[test]
fn a_session_can_be_opened_by_one_call_at_a_time() {
    let now = Instant::now();
    let mut store = SessionStore::new(limits());
    let first = store.open(&id("a"), None, now).unwrap();
    assert_eq!(
        store.open(&id("a"), None, now).unwrap_err(),
        SessionError::Busy { leaving: false }
    );
    store.leave(&first.lease.mark());
    assert_eq!(
        store.open(&id("a"), None, now).unwrap_err(),
        SessionError::Busy { leaving: true }
    );
    store.abandon(first.lease);
    assert!(store.is_empty());
    assert_eq!(store.bytes(), 0);
}

#[test]
fn the_expected_position_is_where_it_stands_or_where_its_last_call_began() {
    let now = Instant::now();
    let mut store = SessionStore::new(limits());
    call(&mut store, "a", now);
    call(&mut store, "a", now);
    for (expected, position) in [(None, 20), (Some(20), 20), (Some(10), 10)] {
        let opening = store.open(&id("a"), expected, now).unwrap();
        assert_eq!(opening.kept.unwrap().1.position, position);
        store.abandon(opening.lease);
    }
    assert_eq!(
        store.open(&id("a"), Some(0), now).unwrap_err(),
        SessionError::PositionMismatch {
            expected: 0,
            position: 20,
            last_call_position: 10
        }
    );
    assert!(store.open(&id("new"), Some(0), now).is_ok());
    assert!(matches!(
        store.open(&id("other"), Some(5), now).unwrap_err(),
        SessionError::PositionMismatch { .. }
    ));
}

#[test]
fn the_least_recently_used_goes_first_and_is_remembered() {
    let now = Instant::now();
    let mut store = SessionStore::new(limits());
    for name in ["a", "b", "c", "a", "d"] {
        call(&mut store, name, now);
    }
    assert_eq!(
        store.open(&id("b"), None, now).unwrap_err(),
        SessionError::Evicted(Reason::Capacity)
    );
    assert!(store.get(&id("a"), now).is_ok());
    assert_eq!(store.len(), 3);
}

#[test]
fn idle_sessions_go_after_their_time_and_are_remembered() {
    let start = Instant::now();
    let mut store = SessionStore::new(limits());
    call(&mut store, "a", start);
    let later = start + Duration::from_secs(30);
    call(&mut store, "b", later);
    let end = start + Duration::from_secs(60);
    assert_eq!(
        store.get(&id("a"), end).unwrap_err(),
        SessionError::Evicted(Reason::Idle)
    );
    assert!(store.get(&id("b"), end).is_ok());
    store.delete(&id("a")).unwrap();
    assert_eq!(
        store.get(&id("a"), end).unwrap_err(),
        SessionError::Unknown,
        "after a delete the name is free again"
    );
}

#[test]
fn sessions_in_use_are_not_let_go() {
    let now = Instant::now();
    let mut store = SessionStore::new(limits());
    let held: Vec<Lease> = ["a", "b", "c"]
        .map(|name| store.open(&id(name), None, now).unwrap().lease)
        .into();
    assert_eq!(
        store.open(&id("d"), None, now).unwrap_err(),
        SessionError::Full
    );
    store.expire(now + Duration::from_secs(600));
    assert_eq!(store.len(), held.len());
}

#[test]
fn the_bytes_of_all_sessions_stay_within_the_limit() {
    let now = Instant::now();
    let one = ENTRY_BYTES + STATE_LEN * 4 + 11;
    let mut store = SessionStore::new(SessionLimits {
        max_bytes: 10 * one,
        max_sessions: 1000,
        ..limits()
    });
    for i in 0..100 {
        call(&mut store, &format!("s{i}"), now);
        assert!(store.bytes() <= 10 * one);
    }
    assert_eq!(store.len(), 10);
    for i in 90..100 {
        store.delete(&id(&format!("s{i}"))).unwrap();
    }
    assert_eq!(store.bytes(), 0);
}

#[test]
fn a_deleted_session_tells_its_call_to_end_and_is_not_settled() {
    let now = Instant::now();
    let mut store = SessionStore::new(limits());
    call(&mut store, "a", now);
    let opening = store.open(&id("a"), None, now).unwrap();
    store.delete(&id("a")).unwrap();
    assert!(opening.lease.is_cancelled());
    let second = store.open(&id("a"), None, now).unwrap();
    assert!(second.kept.is_none());
    let commit = Commit {
        model: key(),
        begin: point(10),
        end: point(20),
        call: None,
    };
    store.commit(opening.lease, commit, now);
    assert!(store.get(&id("a"), now).unwrap().model.is_none());
    assert!(!second.lease.is_cancelled());
}

#[test]
fn a_fork_shares_the_states_and_goes_its_own_way() {
    let now = Instant::now();
    let mut store = SessionStore::new(limits());
    call(&mut store, "a", now);
    store.fork(&id("a"), &id("b"), now).unwrap();
    assert_eq!(
        store.fork(&id("a"), &id("b"), now).unwrap_err(),
        SessionError::Exists
    );
    let of = |store: &mut SessionStore, name: &str| store.export(&id(name), now).unwrap().end;
    assert!(of(&mut store, "a").shares_hidden(&of(&mut store, "b")));
    call(&mut store, "b", now);
    assert_eq!(of(&mut store, "a").position, 10);
    assert_eq!(of(&mut store, "b").position, 20);
}

#[test]
fn older_sessions_keep_one_state_and_both_points() {
    let now = Instant::now();
    let mut store = SessionStore::new(SessionLimits {
        max_ready: 1,
        ..limits()
    });
    call(&mut store, "a", now);
    call(&mut store, "a", now);
    let ready = store.get(&id("a"), now).unwrap().bytes;
    call(&mut store, "b", now);
    let shrunk = store.get(&id("a"), now).unwrap().bytes;
    assert!(shrunk + STATE_LEN * 4 <= ready + 11, "{shrunk} of {ready}");
    let snapshot = store.export(&id("a"), now).unwrap();
    assert!(snapshot.begin.shares_hidden(&snapshot.end));
    assert_eq!(snapshot.end.unfed.len(), 11);
    assert_eq!((snapshot.begin.position, snapshot.end.position), (10, 20));
}

#[test]
fn pages_list_every_session_once_the_most_recent_first() {
    let now = Instant::now();
    let mut store = SessionStore::new(SessionLimits {
        max_sessions: 100,
        ..limits()
    });
    for i in 0..7 {
        call(&mut store, &format!("s{i}"), now);
    }
    let mut names = Vec::new();
    let mut mark = None;
    loop {
        let page = store.list(3, mark, now);
        assert_eq!(page.total, 7);
        names.extend(page.sessions.into_iter().map(|s| s.id.to_string()));
        mark = page.next;
        if mark.is_none() {
            break;
        }
    }
    assert_eq!(names, ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]);
}

#[test]
fn a_call_that_comes_to_nothing_costs_no_other_session() {
    let now = Instant::now();
    let mut store = SessionStore::new(limits());
    for name in ["a", "b", "c"] {
        call(&mut store, name, now);
    }
    let opening = store.open(&id("d"), None, now).unwrap();
    store.abandon(opening.lease);
    for name in ["a", "b", "c"] {
        assert!(store.get(&id(name), now).is_ok());
    }
    let opening = store.open(&id("d"), None, now).unwrap();
    store.delete(&id("d")).unwrap();
    store.abandon(opening.lease);
    call(&mut store, "e", now);
    assert_eq!(store.len(), 3);
}

#[test]
fn a_hundred_thousand_idle_sessions_of_two_layers_of_512_fit_in_a_gibibyte() {
    let now = Instant::now();
    let mut store = SessionStore::new(SessionLimits {
        max_sessions: 10_000,
        max_ready: 10,
        ..SessionLimits::default()
    });
    let long = |position| SessionState {
        hidden: Some(Arc::new(HiddenState(vec![0.5; 2 * 2 * 512].into()))),
        ..point(position)
    };
    for i in 0..1000 {
        let name = id(&format!("a-session-with-a-name-of-36-letter-{i}"));
        for n in 0..2u64 {
            let opening = store.open(&name, None, now).unwrap();
            let commit = Commit {
                model: key(),
                begin: opening
                    .kept
                    .map_or(SessionState::origin(1), |(_, point)| point),
                end: long((n + 1) * 250),
                call: Some(TokenIds::from([1; 250].as_slice())),
            };
            store.commit(opening.lease, commit, now);
        }
    }
    assert_eq!(store.len(), 1000);
    assert!(store.bytes() < 1000 * 10_700, "{} bytes", store.bytes());
}
