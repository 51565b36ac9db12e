#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::sessions::state::{ModelKey, SessionState, TokenIds};
use crate::sessions::store::{SessionError, SessionLimits};
use charlstm_model::decode_step::HiddenState;
use charlstm_repository::ModelId;

fn snapshot(name: &str, number: f32) -> Snapshot {
    let mut end = SessionState::origin(4);
    end.hidden = Some(Arc::new(HiddenState(vec![number; 8].into())));
    end.unfed = TokenIds::from([3].as_slice());
    end.position = 7;
    Snapshot {
        id: id(name),
        model: ModelKey {
            id: ModelId {
                name: "m".to_owned(),
                version: 1,
            },
            digest: [5; 32],
        },
        begin: SessionState::origin(4),
        end,
        call: None,
    }
}

fn id(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn store(names: &[&str]) -> SessionStore {
    let mut store = SessionStore::new(SessionLimits::default());
    for (i, name) in names.iter().enumerate() {
        let snapshot = snapshot(name, i as f32);
        store.import(&id(name), snapshot, Instant::now()).unwrap();
    }
    store
}

#[test]
fn sessions_come_back_once_and_in_their_order_of_use() {
    let folder = tempfile::tempdir().unwrap();
    let saved = store(&["a", "b", "c"]);
    save(folder.path(), &saved).unwrap();
    let mut restored = store(&[]);
    let found = restore(folder.path(), &mut restored, Instant::now()).unwrap();
    assert_eq!(found.sessions, 3);
    let before: Vec<_> = saved.snapshots().collect();
    let after: Vec<_> = restored.snapshots().collect();
    assert_eq!(before, after);
    let again = restore(folder.path(), &mut store(&[]), Instant::now()).unwrap();
    assert_eq!(again.sessions, 0, "the file must not serve twice");
}

#[test]
fn after_a_crash_the_names_are_known_as_lost() {
    let folder = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let mut names = SessionLog::begin(folder.path(), &store(&["a"])).unwrap();
    names.add(&id("b")).unwrap();
    names.add(&id("c")).unwrap();
    names.strike(&id("c")).unwrap();
    let mut after = store(&[]);
    let found = restore(folder.path(), &mut after, now).unwrap();
    assert_eq!(found.sessions, 0);
    for name in ["a", "b"] {
        assert_eq!(
            after.get(&id(name), now).unwrap_err(),
            SessionError::Evicted(Reason::Restart)
        );
    }
    assert_eq!(after.get(&id("c"), now).unwrap_err(), SessionError::Unknown);
}

#[test]
fn a_damaged_file_gives_what_comes_before_the_damage_and_the_rest_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let saved = store(&["a", "b", "c"]);
    SessionLog::begin(folder.path(), &saved).unwrap();
    save(folder.path(), &saved).unwrap();
    let path = sessions_path(folder.path());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut after = store(&[]);
    let found = restore(folder.path(), &mut after, now).unwrap();
    assert_eq!((found.sessions, found.lost), (1, 2));
    assert!(after.get(&id("a"), now).is_ok());
    assert_eq!(
        after.get(&id("b"), now).unwrap_err(),
        SessionError::Evicted(Reason::Restart)
    );
}

#[test]
fn why_a_session_was_let_go_outlives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let limits = SessionLimits {
        max_sessions: 1,
        ..SessionLimits::default()
    };
    let now = Instant::now();
    let mut saved = SessionStore::new(limits);
    saved.import(&id("a"), snapshot("a", 0.0), now).unwrap();
    saved.import(&id("b"), snapshot("b", 0.0), now).unwrap();
    save(folder.path(), &saved).unwrap();
    let mut after = SessionStore::new(limits);
    restore(folder.path(), &mut after, now).unwrap();
    assert_eq!(
        after.get(&id("a"), now).unwrap_err(),
        SessionError::Evicted(Reason::Capacity)
    );
}
