//! What a call does to its session: opening, committing, repeating.

use super::{at_most, plenty};
use crate::session::testing::fixture::{
    Start, commit, identity, key, model, parameters, request, state,
};
use crate::session::{
    AllowedSessions, ForkRequest, ImportRequest, OpenRequest, RecordError, SessionCommit,
    SessionError, SessionId, SessionIdentity, SessionRecord,
};

pub async fn a_commit_is_what_the_next_call_continues_from(start: Start) {
    let fixture = start(plenty()).await;
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
    let stats = fixture.stats().await;
    assert_eq!((stats.sessions, stats.in_use), (1, 0));
    assert_eq!(stats.bytes, info.bytes);
}

pub async fn a_session_that_was_only_opened_does_not_exist(start: Start) {
    let fixture = start(plenty()).await;
    fixture.abandon(fixture.open("a").await.unwrap()).await;
    assert_eq!(fixture.get("a").await, Err(SessionError::Unknown));
    let must_exist = OpenRequest {
        create: None,
        ..request("a")
    };
    let error = fixture.storage.open(must_exist).await.unwrap_err();
    assert_eq!(error, SessionError::Unknown);
    assert_eq!(fixture.stats().await.pending_creates, 0);
    // An existing session stays where it is.
    fixture.call("b", 3).await.unwrap();
    fixture.abandon(fixture.open("b").await.unwrap()).await;
    assert_eq!(fixture.position("b").await, 3);
}

pub async fn a_session_that_is_to_be_created_is_not_shown_and_counts(start: Start) {
    let fixture = start(at_most(2)).await;
    let first = fixture.open("a").await.unwrap();
    let second = fixture.open("b").await.unwrap();
    assert_eq!(fixture.get("a").await, Err(SessionError::Unknown));
    assert!(fixture.ids().await.is_empty());
    let stats = fixture.stats().await;
    assert_eq!((stats.sessions, stats.pending_creates), (0, 2));
    let model = model("book", 1);
    assert_eq!(fixture.storage.count_by_model(&model).await, Ok(2));
    assert_eq!(fixture.open("c").await.unwrap_err(), SessionError::Full);
    fixture.abandon(first).await;
    fixture.finish(second, 1, "p").await.unwrap();
    assert_eq!(fixture.storage.count_by_model(&model).await, Ok(1));
    assert_eq!(fixture.ids().await, ["b"]);
    fixture.call("c", 1).await.unwrap();
}

pub async fn only_one_call_has_a_session(start: Start) {
    let fixture = start(plenty()).await;
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
        fixture.abandon(opened).await;
        fixture.abandon(fixture.open(session).await.unwrap()).await;
    }
}

pub async fn the_end_of_a_call_wakes_those_that_wait(start: Start) {
    let fixture = start(plenty()).await;
    // Nobody holds it: nothing to wait for.
    fixture.storage.released(&key("a")).await;
    for ending in ["abandoned", "committed", "deleted"] {
        let opened = fixture.open("a").await.unwrap();
        let released = fixture.storage.released(&key("a"));
        let waiting = tokio::spawn(released);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        match ending {
            "abandoned" => fixture.abandon(opened).await,
            "committed" => {
                fixture.finish(opened, 1, "p").await.unwrap();
            }
            _ => {
                fixture.storage.delete(&key("a")).await.unwrap();
                fixture.abandon(opened).await;
            }
        }
        waiting.await.unwrap();
        fixture.abandon(fixture.open("a").await.unwrap()).await;
    }
}

pub async fn an_expected_position_must_be_the_end_or_the_beginning_of_the_last_call(start: Start) {
    let fixture = start(plenty()).await;
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
    fixture.abandon(opened).await;
    let opened = fixture.open_at("a", 10).await.unwrap();
    let found = opened.start.as_ref().unwrap();
    assert_eq!((&found.state, found.is_rewind), (&state(10), true));
    fixture.abandon(opened).await;
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

pub async fn a_repeat_that_is_cut_off_never_moves_a_session_back(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn a_repeat_that_gets_further_moves_the_session_on(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn a_rewind_with_other_parameters_is_a_new_branch(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn a_call_that_adds_nothing_changes_nothing(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn a_commit_must_fit_what_was_opened(start: Start) {
    let fixture = start(plenty()).await;
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
    assert_eq!(fixture.stats().await.in_use, 0);
}

pub async fn a_session_of_another_arithmetic_is_rejected(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn nothing_changes_after_a_shutdown(start: Start) {
    let fixture = start(plenty()).await;
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
