//! The rules, for any backend.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::fixture::{Start, abandon, commit, identity, key, model, parameters, request, state};
use crate::session::{
    AllowedSessions, EvictionReason, ForkRequest, ImportRequest, LeaseStatus, ListRequest,
    OpenRequest, Owner, RecordError, SessionCommit, SessionError, SessionId, SessionIdentity,
    SessionKey, SessionLimits, SessionRecord,
};

fn plenty() -> SessionLimits {
    SessionLimits::default()
}

fn at_most(max_sessions: u64) -> SessionLimits {
    SessionLimits {
        max_sessions,
        ..plenty()
    }
}

fn evicted<T>(reason: EvictionReason) -> Result<T, SessionError> {
    Err(SessionError::Evicted(reason))
}

pub(super) async fn a_commit_is_what_the_next_call_continues_from(start: Start) {
    let fixture = start(plenty());
    let opened = fixture.open("a").await.unwrap();
    assert!(opened.start.is_none());
    let outcome = fixture.finish(opened, 10, "one").await.unwrap();
    assert_eq!((outcome.position, outcome.last_call_position), (10, 0));
    assert!(outcome.changed);
    let opened = fixture.open("a").await.unwrap();
    let found = opened.start.as_ref().unwrap();
    assert_eq!(found.identity, identity("book", 1));
    assert_eq!(found.state, state(10));
    assert!(!found.is_rewind);
    fixture.finish(opened, 5, "two").await.unwrap();
    let info = fixture.get("a").await.unwrap();
    assert_eq!((info.position, info.last_call_position), (15, 10));
    assert!(!info.busy);
    let record = fixture.export("a").await.unwrap();
    assert_eq!((record.begin, record.end), (state(10), state(15)));
    assert_eq!(record.last_call.parameters, Some(parameters("two")));
    assert_eq!(record.last_call.tokens.unwrap().len(), 5);
    let stats = fixture.storage.stats();
    assert_eq!((stats.sessions, stats.in_use), (1, 0));
    assert_eq!(stats.bytes, info.bytes);
}

pub(super) async fn a_session_that_was_only_opened_does_not_exist(start: Start) {
    let fixture = start(plenty());
    abandon(fixture.open("a").await.unwrap());
    assert_eq!(fixture.get("a").await, Err(SessionError::Unknown));
    let must_exist = OpenRequest {
        create: None,
        ..request("a")
    };
    let error = fixture.storage.open(must_exist).await.unwrap_err();
    assert_eq!(error, SessionError::Unknown);
    assert_eq!(fixture.storage.stats().pending_creates, 0);
    // An existing session stays where it is.
    fixture.call("b", 3).await.unwrap();
    abandon(fixture.open("b").await.unwrap());
    assert_eq!(fixture.position("b").await, 3);
}

pub(super) async fn a_session_that_is_to_be_created_is_not_shown_and_counts(start: Start) {
    let fixture = start(at_most(2));
    let first = fixture.open("a").await.unwrap();
    let second = fixture.open("b").await.unwrap();
    assert_eq!(fixture.get("a").await, Err(SessionError::Unknown));
    assert!(fixture.ids().await.is_empty());
    let stats = fixture.storage.stats();
    assert_eq!((stats.sessions, stats.pending_creates), (0, 2));
    let model = model("book", 1);
    assert_eq!(fixture.storage.count_by_model(&model).await, Ok(2));
    assert_eq!(fixture.open("c").await.unwrap_err(), SessionError::Full);
    abandon(first);
    fixture.finish(second, 1, "p").await.unwrap();
    assert_eq!(fixture.storage.count_by_model(&model).await, Ok(1));
    assert_eq!(fixture.ids().await, ["b"]);
    fixture.call("c", 1).await.unwrap();
}

pub(super) async fn only_one_call_has_a_session(start: Start) {
    let fixture = start(plenty());
    let busy = |leaving| SessionError::Busy {
        leaving,
        replica: None,
    };
    for session in ["new", "old"] {
        if session == "old" {
            fixture.call("old", 2).await.unwrap();
        }
        let opened = fixture.open(session).await.unwrap();
        assert_eq!(fixture.open(session).await.unwrap_err(), busy(false));
        opened.lease.handle().mark_leaving();
        assert_eq!(fixture.open(session).await.unwrap_err(), busy(true));
        if session == "old" {
            assert!(fixture.get("old").await.unwrap().busy);
            assert_eq!(fixture.export("old").await, Err(busy(true)));
            let fork = ForkRequest {
                key: key("old"),
                new_id: SessionId::new("other").unwrap(),
                owner_limit: None,
            };
            assert_eq!(fixture.storage.fork(fork).await, Err(busy(true)));
        }
        abandon(opened);
        abandon(fixture.open(session).await.unwrap());
    }
}

pub(super) async fn the_end_of_a_call_wakes_those_that_wait(start: Start) {
    let fixture = start(plenty());
    // Nobody holds it: nothing to wait for.
    fixture.storage.released(&key("a")).await;
    for ending in ["abandoned", "committed", "deleted"] {
        let opened = fixture.open("a").await.unwrap();
        let released = fixture.storage.released(&key("a"));
        let waiting = tokio::spawn(released);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        match ending {
            "abandoned" => abandon(opened),
            "committed" => {
                fixture.finish(opened, 1, "p").await.unwrap();
            }
            _ => {
                fixture.storage.delete(&key("a")).await.unwrap();
                abandon(opened);
            }
        }
        waiting.await.unwrap();
        abandon(fixture.open("a").await.unwrap());
    }
}

pub(super) async fn an_expected_position_must_be_the_end_or_the_beginning_of_the_last_call(
    start: Start,
) {
    let fixture = start(plenty());
    let error = fixture.open_at("a", 4).await.unwrap_err();
    let expected = SessionError::PositionMismatch {
        expected: 4,
        position: 0,
        last_call_position: 0,
    };
    assert_eq!(error, expected);
    let opened = fixture.open_at("a", 0).await.unwrap();
    fixture.finish(opened, 10, "one").await.unwrap();
    fixture.call("a", 5).await.unwrap();
    let opened = fixture.open_at("a", 15).await.unwrap();
    let found = opened.start.as_ref().unwrap();
    assert_eq!((&found.state, found.is_rewind), (&state(15), false));
    abandon(opened);
    let opened = fixture.open_at("a", 10).await.unwrap();
    let found = opened.start.as_ref().unwrap();
    assert_eq!((&found.state, found.is_rewind), (&state(10), true));
    abandon(opened);
    for expected in [0, 9, 16, u64::MAX] {
        let error = fixture.open_at("a", expected).await.unwrap_err();
        let mismatch = SessionError::PositionMismatch {
            expected,
            position: 15,
            last_call_position: 10,
        };
        assert_eq!(error, mismatch);
    }
    // The first call of a session can be repeated too.
    fixture.call("b", 5).await.unwrap();
    let opened = fixture.open_at("b", 0).await.unwrap();
    assert_eq!(opened.start.as_ref().unwrap().state, state(0));
}

pub(super) async fn a_repeat_that_is_cut_off_never_moves_a_session_back(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 10).await.unwrap();
    let opened = fixture.open("a").await.unwrap();
    fixture.finish(opened, 20, "tale").await.unwrap();
    let repeat = fixture.open_at("a", 10).await.unwrap();
    let outcome = fixture.cut_off(repeat, 5, "tale").await.unwrap();
    assert_eq!((outcome.position, outcome.changed), (30, false));
    assert_eq!(outcome.last_call_position, 10);
    assert_eq!(fixture.export("a").await.unwrap().end, state(30));
    // Whole repeats come to the same end.
    let repeat = fixture.open_at("a", 10).await.unwrap();
    fixture.finish(repeat, 20, "tale").await.unwrap();
    assert_eq!(fixture.position("a").await, 30);
}

pub(super) async fn a_repeat_that_gets_further_moves_the_session_on(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 10).await.unwrap();
    let opened = fixture.open("a").await.unwrap();
    fixture.cut_off(opened, 7, "tale").await.unwrap();
    assert_eq!(fixture.position("a").await, 17);
    let repeat = fixture.open_at("a", 10).await.unwrap();
    let outcome = fixture.cut_off(repeat, 9, "tale").await.unwrap();
    assert_eq!((outcome.position, outcome.changed), (19, true));
    let repeat = fixture.open_at("a", 10).await.unwrap();
    fixture.finish(repeat, 20, "tale").await.unwrap();
    assert_eq!(fixture.position("a").await, 30);
}

pub(super) async fn a_rewind_with_other_parameters_is_a_new_branch(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 10).await.unwrap();
    let opened = fixture.open("a").await.unwrap();
    fixture.finish(opened, 20, "tale").await.unwrap();
    let branch = fixture.open_at("a", 10).await.unwrap();
    let outcome = fixture.cut_off(branch, 5, "other").await.unwrap();
    assert_eq!((outcome.position, outcome.changed), (15, true));
    // The earlier branch is gone, and this one can be repeated.
    let repeat = fixture.open_at("a", 10).await.unwrap();
    let outcome = fixture.cut_off(repeat, 2, "other").await.unwrap();
    assert_eq!((outcome.position, outcome.changed), (15, false));
}

pub(super) async fn a_call_that_adds_nothing_changes_nothing(start: Start) {
    let fixture = start(plenty());
    let opened = fixture.open("new").await.unwrap();
    let outcome = fixture.finish(opened, 0, "nothing").await.unwrap();
    assert_eq!((outcome.position, outcome.changed), (0, false));
    assert_eq!(fixture.get("new").await, Err(SessionError::Unknown));
    fixture.call("a", 10).await.unwrap();
    let opened = fixture.open("a").await.unwrap();
    fixture.finish(opened, 20, "tale").await.unwrap();
    let before = fixture.export("a").await.unwrap();
    let opened = fixture.open("a").await.unwrap();
    let outcome = fixture.finish(opened, 0, "nothing").await.unwrap();
    assert_eq!((outcome.position, outcome.changed), (30, false));
    assert_eq!(outcome.last_call_position, 10);
    assert_eq!(fixture.export("a").await.unwrap(), before);
    let rewound = fixture.open_at("a", 10).await.unwrap();
    fixture.finish(rewound, 0, "nothing").await.unwrap();
    assert_eq!(fixture.export("a").await.unwrap(), before);
}

pub(super) async fn a_commit_must_fit_what_was_opened(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 10).await.unwrap();
    let wrong: [fn(&mut SessionCommit); 4] = [
        |commit| commit.identity = identity("book", 2),
        |commit| commit.begin = state(9),
        |commit| commit.end.unfed = [1, 2].as_slice().into(),
        |commit| commit.end.position = 12,
    ];
    for (at, change) in wrong.into_iter().enumerate() {
        let opened = fixture.open("a").await.unwrap();
        let mut commit = commit(&opened, 3, "p");
        change(&mut commit);
        let outcome = fixture.storage.commit(opened.lease, commit).await;
        // More unfed characters are another way to write the same point.
        if at == 2 {
            outcome.unwrap();
            fixture.storage.delete(&key("a")).await.unwrap();
            fixture.call("a", 10).await.unwrap();
        } else {
            let error = outcome.unwrap_err();
            assert!(matches!(
                error,
                SessionError::Record(RecordError::Content(_))
            ));
        }
        assert_eq!(fixture.position("a").await, 10);
    }
    assert_eq!(fixture.storage.stats().in_use, 0);
}

pub(super) async fn deleting_ends_a_running_call_and_frees_the_name(start: Start) {
    let fixture = start(plenty());
    assert_eq!(
        fixture.storage.delete(&key("a")).await,
        Err(SessionError::Unknown)
    );
    fixture.call("a", 10).await.unwrap();
    let old = fixture.open("a").await.unwrap();
    let handle = old.lease.handle();
    assert_eq!(old.lease.status(), LeaseStatus::Held);
    fixture.storage.delete(&key("a")).await.unwrap();
    assert_eq!(old.lease.status(), LeaseStatus::Deleted);
    assert_eq!(handle.status(), LeaseStatus::Deleted);
    assert_eq!(fixture.get("a").await, Err(SessionError::Unknown));
    // A new session of that name is not touched by the old call.
    let new = fixture.open("a").await.unwrap();
    assert!(new.start.is_none());
    let outcome = fixture.finish(old, 5, "p").await;
    assert_eq!(outcome, Err(SessionError::Deleted));
    assert_eq!(new.lease.status(), LeaseStatus::Held);
    fixture.finish(new, 3, "p").await.unwrap();
    assert_eq!(fixture.position("a").await, 3);
    // A first call can be deleted too.
    let first = fixture.open("b").await.unwrap();
    fixture.storage.delete(&key("b")).await.unwrap();
    assert_eq!(
        fixture.finish(first, 5, "p").await,
        Err(SessionError::Deleted)
    );
    assert_eq!(fixture.get("b").await, Err(SessionError::Unknown));
}

pub(super) async fn a_fork_is_where_the_original_is_and_leaves_it_alone(start: Start) {
    let fixture = start(plenty());
    let fork = |from: &str, to: &str| {
        fixture.storage.fork(ForkRequest {
            key: key(from),
            new_id: SessionId::new(to).unwrap(),
            owner_limit: None,
        })
    };
    assert_eq!(fork("a", "b").await, Err(SessionError::Unknown));
    fixture.call("a", 10).await.unwrap();
    fixture.call("a", 5).await.unwrap();
    let info = fork("a", "b").await.unwrap();
    assert_eq!(info.key, key("b"));
    assert_eq!((info.position, info.last_call_position), (15, 10));
    assert_eq!(fork("a", "b").await, Err(SessionError::Exists));
    assert_eq!(fork("a", "a").await, Err(SessionError::Exists));
    fixture.call("b", 7).await.unwrap();
    assert_eq!(fixture.position("a").await, 15);
    let repeat = fixture.open_at("a", 10).await.unwrap();
    assert_eq!(repeat.start.as_ref().unwrap().state, state(10));
}

pub(super) async fn an_exported_record_can_be_imported_under_another_name(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 10).await.unwrap();
    let record = fixture.export("a").await.unwrap();
    let import = |record: SessionRecord| {
        fixture.storage.import(ImportRequest {
            record,
            owner_limit: None,
        })
    };
    assert_eq!(import(record.clone()).await, Err(SessionError::Exists));
    let other = SessionRecord {
        key: key("b"),
        ..record.clone()
    };
    import(other).await.unwrap();
    let copy = fixture.export("b").await.unwrap();
    assert_eq!((copy.begin, copy.end), (record.begin, record.end.clone()));
    assert_eq!(copy.last_call, record.last_call);
    let mut wrong = fixture.export("a").await.unwrap();
    wrong.key = key("c");
    wrong.end.position += 1;
    let error = import(wrong).await.unwrap_err();
    assert!(matches!(error, SessionError::Record(_)));
    assert_eq!(fixture.get("c").await, Err(SessionError::Unknown));
    assert_eq!(fixture.storage.stats().pending_creates, 0);
}

pub(super) async fn two_owners_can_use_the_same_id(start: Start) {
    let fixture = start(plenty());
    let owned = |name: &str| SessionKey::new(Owner::new(name).unwrap(), key("tale").id);
    for (owner, chars) in [("alice", 3), ("bob", 4)] {
        let request = OpenRequest {
            key: owned(owner),
            ..request("tale")
        };
        let opened = fixture.storage.open(request).await.unwrap();
        assert!(opened.start.is_none());
        fixture.finish(opened, chars, "p").await.unwrap();
    }
    let alice = fixture.storage.get(&owned("alice")).await.unwrap();
    assert_eq!(alice.position, 3);
    let list = |owner: Option<&str>| {
        fixture.storage.list(ListRequest {
            owner: owner.map(|owner| Owner::new(owner).unwrap()),
            max_sessions: 10,
            after: None,
        })
    };
    let page = list(Some("bob")).await.unwrap();
    assert_eq!((page.sessions.len(), page.total), (1, 1));
    assert_eq!(page.sessions[0].key, owned("bob"));
    assert_eq!(list(None).await.unwrap().total, 2);
    assert_eq!(list(Some("eve")).await.unwrap().total, 0);
    fixture.storage.delete(&owned("bob")).await.unwrap();
    let alice = fixture.storage.get(&owned("alice")).await.unwrap();
    assert_eq!(alice.position, 3);
}

pub(super) async fn the_least_recently_used_session_is_evicted_for_a_new_one(start: Start) {
    let fixture = start(at_most(3));
    for id in ["a", "b", "c"] {
        fixture.call(id, 1).await.unwrap();
    }
    fixture.call("a", 1).await.unwrap();
    fixture.call("d", 1).await.unwrap();
    assert_eq!(fixture.ids().await, ["d", "a", "c"]);
    assert_eq!(fixture.get("b").await, evicted(EvictionReason::Capacity));
    let error = fixture.open("b").await.unwrap_err();
    assert_eq!(error, SessionError::Evicted(EvictionReason::Capacity));
    assert_eq!(fixture.export("b").await, evicted(EvictionReason::Capacity));
    let stats = fixture.storage.stats();
    assert_eq!((stats.sessions, stats.tombstones), (3, 1));
    assert_eq!(stats.evicted[&EvictionReason::Capacity], 1);
    // A call that comes to nothing costs no session.
    abandon(fixture.open("e").await.unwrap());
    assert_eq!(fixture.ids().await, ["d", "a", "c"]);
}

pub(super) async fn the_limit_on_bytes_evicts_too(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 1).await.unwrap();
    let bytes = fixture.storage.stats().bytes;
    let limits = SessionLimits {
        max_bytes: 3 * bytes + bytes / 2,
        ..plenty()
    };
    let fixture = start(limits);
    for id in ["a", "b", "c", "d", "e"] {
        fixture.call(id, 1).await.unwrap();
        assert!(fixture.storage.stats().bytes <= limits.max_bytes);
    }
    assert_eq!(fixture.ids().await, ["e", "d", "c"]);
    assert_eq!(fixture.get("a").await, evicted(EvictionReason::Capacity));
}

pub(super) async fn sessions_in_use_are_never_evicted(start: Start) {
    let limits = SessionLimits {
        max_idle: Duration::from_secs(60),
        ..at_most(2)
    };
    let fixture = start(limits);
    fixture.call("a", 1).await.unwrap();
    fixture.call("b", 1).await.unwrap();
    let a = fixture.open("a").await.unwrap();
    fixture.clock.advance(Duration::from_secs(61));
    fixture.call("c", 1).await.unwrap();
    assert_eq!(fixture.ids().await, ["c", "a"]);
    let c = fixture.open("c").await.unwrap();
    assert_eq!(fixture.open("d").await.unwrap_err(), SessionError::Full);
    fixture.finish(a, 1, "p").await.unwrap();
    fixture.call("d", 1).await.unwrap();
    assert_eq!(fixture.get("a").await, evicted(EvictionReason::Capacity));
    fixture.finish(c, 1, "p").await.unwrap();
    assert_eq!(fixture.ids().await, ["c", "d"]);
}

pub(super) async fn idle_sessions_are_evicted_by_running_time(start: Start) {
    let limits = SessionLimits {
        max_idle: Duration::from_secs(60),
        ..plenty()
    };
    let fixture = start(limits);
    fixture.call("a", 1).await.unwrap();
    fixture.clock.advance(Duration::from_secs(59));
    assert_eq!(fixture.get("a").await.unwrap().idle.as_secs(), 59);
    fixture.call("b", 1).await.unwrap();
    fixture.call("c", 1).await.unwrap();
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(fixture.get("a").await, evicted(EvictionReason::Idle));
    assert_eq!(fixture.ids().await, ["c", "b"]);
    let error = fixture.open("a").await.unwrap_err();
    assert_eq!(error, SessionError::Evicted(EvictionReason::Idle));
    assert_eq!(fixture.storage.stats().tombstones, 1);
    fixture.call("b", 1).await.unwrap();
    fixture.clock.advance(Duration::from_secs(59));
    assert_eq!(fixture.ids().await, ["b"]);
    assert_eq!(fixture.export("c").await, evicted(EvictionReason::Idle));
}

pub(super) async fn without_limits_no_session_is_ever_too_old(start: Start) {
    let fixture = start(SessionLimits::UNLIMITED);
    fixture.call("a", 1).await.unwrap();
    fixture.clock.advance(Duration::from_secs(4000 * 24 * 3600));
    fixture.call("b", 1).await.unwrap();
    assert_eq!(fixture.ids().await, ["b", "a"]);
}

pub(super) async fn a_tombstone_is_kept_until_the_session_is_deleted_or_recreated(start: Start) {
    let fixture = start(at_most(1));
    for id in ["a", "b", "c", "d"] {
        fixture.call(id, 2).await.unwrap();
    }
    fixture.storage.delete(&key("a")).await.unwrap();
    assert_eq!(
        fixture.storage.delete(&key("a")).await,
        Err(SessionError::Unknown)
    );
    assert_eq!(fixture.get("a").await, Err(SessionError::Unknown));
    fixture.call("a", 1).await.unwrap();
    let record = SessionRecord {
        key: key("b"),
        ..fixture.export("a").await.unwrap()
    };
    let import = ImportRequest {
        record,
        owner_limit: None,
    };
    fixture.storage.import(import).await.unwrap();
    assert_eq!(fixture.ids().await, ["b"]);
    let fork = ForkRequest {
        key: key("b"),
        new_id: SessionId::new("c").unwrap(),
        owner_limit: None,
    };
    fixture.storage.fork(fork).await.unwrap();
    assert_eq!(fixture.ids().await, ["c"]);
    fixture.storage.delete(&key("c")).await.unwrap();
    assert_eq!(fixture.get("c").await, Err(SessionError::Unknown));
}

pub(super) async fn old_tombstones_make_room_for_new_ones(start: Start) {
    let limits = SessionLimits {
        max_tombstones: 3,
        ..at_most(1)
    };
    let fixture = start(limits);
    for at in 0..10 {
        fixture.call(&format!("s{at}"), 1).await.unwrap();
    }
    assert_eq!(fixture.storage.stats().tombstones, 3);
    assert_eq!(fixture.get("s5").await, Err(SessionError::Unknown));
    for at in 6..9 {
        let info = fixture.get(&format!("s{at}")).await;
        assert_eq!(info, evicted(EvictionReason::Capacity));
    }
}

pub(super) async fn pages_go_from_the_most_recently_used_to_the_least(start: Start) {
    let fixture = start(plenty());
    for id in ["a", "b", "c", "d", "e"] {
        fixture.call(id, 1).await.unwrap();
    }
    let page = |after| {
        fixture.storage.list(ListRequest {
            owner: Some(Owner::admin()),
            max_sessions: 2,
            after,
        })
    };
    let ids = |page: &crate::session::SessionPage| {
        let ids = page.sessions.iter();
        ids.map(|info| info.key.id.as_str().to_owned())
            .collect::<Vec<_>>()
    };
    let first = page(None).await.unwrap();
    assert_eq!(
        (ids(&first), first.total),
        (vec!["e".into(), "d".into()], 5)
    );
    // What is used in between is not listed again.
    fixture.call("e", 1).await.unwrap();
    fixture.call("b", 1).await.unwrap();
    let second = page(first.next).await.unwrap();
    assert_eq!(ids(&second), ["c", "a"]);
    assert!(second.next.is_none());
    let whole = fixture.ids().await;
    assert_eq!(whole, ["b", "e", "d", "c", "a"]);
}

pub(super) async fn model_versions_in_use_are_counted_and_can_be_retired(start: Start) {
    let fixture = start(plenty());
    let one = model("book", 1);
    fixture.call("a", 1).await.unwrap();
    let storage = &fixture.storage;
    assert_eq!(storage.count_by_model(&one).await, Ok(1));
    assert_eq!(storage.count_by_model(&model("book", 2)).await, Ok(0));
    let in_use = SessionError::ModelInUse {
        model: one.clone(),
        sessions: 1,
    };
    assert_eq!(
        storage.retire_model(&one, AllowedSessions::None).await,
        Err(in_use)
    );
    fixture.call("b", 1).await.unwrap();
    let others = AllowedSessions::OfOwner(Owner::new("another").unwrap());
    let in_use = SessionError::ModelInUse {
        model: one.clone(),
        sessions: 2,
    };
    assert_eq!(storage.retire_model(&one, others).await, Err(in_use));
    let own = AllowedSessions::OfOwner(Owner::admin());
    storage.retire_model(&one, own).await.unwrap();
    storage.reinstate_model(&one).await.unwrap();
    storage
        .retire_model(&one, AllowedSessions::All)
        .await
        .unwrap();
    let retired = SessionError::ModelRetired(one.clone());
    assert_eq!(fixture.open("c").await.unwrap_err(), retired);
    // What there is stays, and whether its model can be had is not asked here.
    fixture.call("a", 1).await.unwrap();
    storage.reinstate_model(&one).await.unwrap();
    fixture.call("c", 1).await.unwrap();
    let two = model("book", 2);
    storage
        .retire_model(&two, AllowedSessions::None)
        .await
        .unwrap();
    let request = OpenRequest {
        create: Some(identity("book", 2)),
        ..request("d")
    };
    let error = storage.open(request).await.unwrap_err();
    assert_eq!(error, SessionError::ModelRetired(two));
}

pub(super) async fn sessions_of_a_model_can_be_evicted(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 1).await.unwrap();
    fixture.call("b", 1).await.unwrap();
    let other = OpenRequest {
        create: Some(identity("book", 2)),
        ..request("c")
    };
    let opened = fixture.storage.open(other).await.unwrap();
    let commit = SessionCommit {
        identity: identity("book", 2),
        ..commit(&opened, 1, "p")
    };
    fixture.storage.commit(opened.lease, commit).await.unwrap();
    let busy = fixture.open("b").await.unwrap();
    let evict = fixture.storage.evict_model_sessions(&model("book", 1));
    assert_eq!(evict.await, Ok(1));
    assert_eq!(fixture.get("a").await, evicted(EvictionReason::ModelGone));
    fixture.finish(busy, 1, "p").await.unwrap();
    assert_eq!(fixture.ids().await, ["b", "c"]);
}

pub(super) async fn an_owner_has_a_limit_of_its_own(start: Start) {
    let fixture = start(plenty());
    let limited = |id: &str| {
        fixture.storage.open(OpenRequest {
            owner_limit: Some(2),
            ..request(id)
        })
    };
    let first = limited("a").await.unwrap();
    let second = limited("b").await.unwrap();
    let over = SessionError::OwnerLimit { limit: 2 };
    assert_eq!(limited("c").await.unwrap_err(), over);
    abandon(second);
    fixture.finish(first, 1, "p").await.unwrap();
    limited("a").await.unwrap();
    let fork = |limit| {
        fixture.storage.fork(ForkRequest {
            key: key("a"),
            new_id: SessionId::new("b").unwrap(),
            owner_limit: Some(limit),
        })
    };
    let over = SessionError::OwnerLimit { limit: 1 };
    assert_eq!(fork(1).await, Err(over));
    fork(2).await.unwrap();
}

pub(super) async fn a_session_of_another_arithmetic_is_rejected(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 1).await.unwrap();
    let other = SessionIdentity {
        revision: 2,
        ..identity("book", 1)
    };
    let create = OpenRequest {
        create: Some(other.clone()),
        ..request("b")
    };
    let rejected = SessionError::UnknownRevision(2);
    assert_eq!(fixture.storage.open(create).await.unwrap_err(), rejected);
    let record = SessionRecord {
        key: key("b"),
        identity: other,
        ..fixture.export("a").await.unwrap()
    };
    let import = ImportRequest {
        record,
        owner_limit: None,
    };
    assert_eq!(fixture.storage.import(import).await, Err(rejected));
}

pub(super) async fn nothing_changes_after_a_shutdown(start: Start) {
    let fixture = start(plenty());
    fixture.call("a", 1).await.unwrap();
    let running = fixture.open("a").await.unwrap();
    fixture.storage.shutdown().await.unwrap();
    let stopping = SessionError::Stopping;
    assert_eq!(fixture.finish(running, 1, "p").await, Err(stopping.clone()));
    assert_eq!(fixture.open("b").await.unwrap_err(), stopping);
    let storage = &fixture.storage;
    assert_eq!(storage.delete(&key("a")).await, Err(stopping.clone()));
    let model = model("book", 1);
    let retired = storage.retire_model(&model, AllowedSessions::All).await;
    assert_eq!(retired, Err(stopping));
    assert_eq!(fixture.position("a").await, 1);
    storage.shutdown().await.unwrap();
}

/// Random calls, forks and deletions, against a map of positions.
pub(super) async fn random_calls_leave_what_a_simple_model_predicts(start: Start) {
    let mut random = StdRng::seed_from_u64(11);
    let fixture = start(plenty());
    // Position and beginning of the last call.
    let mut expected: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for step in 0..600_u32 {
        let id = format!("s{}", random.random_range(0..12));
        let chars = random.random_range(1..30);
        match random.random_range(0..10) {
            0 => {
                let deleted = fixture.storage.delete(&key(&id)).await;
                assert_eq!(deleted.is_ok(), expected.remove(&id).is_some());
            }
            1 => {
                let new = format!("s{}", random.random_range(0..12));
                let forked = fixture.storage.fork(ForkRequest {
                    key: key(&id),
                    new_id: SessionId::new(&new).unwrap(),
                    owner_limit: None,
                });
                let forked = forked.await;
                match expected.get(&id) {
                    Some(&at) if !expected.contains_key(&new) => {
                        forked.unwrap();
                        expected.insert(new, at);
                    }
                    _ => assert!(forked.is_err()),
                }
            }
            2 => abandon(fixture.open(&id).await.unwrap()),
            3 if expected.contains_key(&id) => {
                let (end, begin) = expected[&id];
                let opened = fixture.open_at(&id, begin).await.unwrap();
                let outcome = fixture.cut_off(opened, chars, &step.to_string()).await;
                outcome.unwrap();
                let same = begin == end;
                let from = if same { end } else { begin };
                expected.insert(id, (from + chars, from));
            }
            _ => {
                let opened = fixture.open(&id).await.unwrap();
                let from = expected.get(&id).map_or(0, |&(end, _)| end);
                let at = opened
                    .start
                    .as_ref()
                    .map_or(0, |start| start.state.position);
                assert_eq!(at, from);
                let text = step.to_string();
                fixture.finish(opened, chars, &text).await.unwrap();
                expected.insert(id, (from + chars, from));
            }
        }
    }
    let stats = fixture.storage.stats();
    assert_eq!(stats.sessions, expected.len() as u64);
    let mut bytes = 0;
    for (id, (end, begin)) in expected {
        let record = fixture.export(&id).await.unwrap();
        assert_eq!((record.begin, record.end), (state(begin), state(end)));
        bytes += fixture.get(&id).await.unwrap().bytes;
    }
    assert_eq!(stats.bytes, bytes);
    assert_eq!((stats.in_use, stats.pending_creates), (0, 0));
}
