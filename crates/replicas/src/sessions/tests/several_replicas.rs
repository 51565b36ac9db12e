//! Two replicas on one database.

use charlstm_store::session::testing::fixture::{key, model};
use charlstm_store::session::{
    AllowedSessions, BootTime, EvictionReason, LeaseStatus, SessionError, SessionLimits,
};

use super::*;

/// Two replicas on a new database, and the database; `None` if PostgreSQL is
/// not installed.
async fn two() -> Option<(Fixture, Fixture, Database)> {
    let database = test_database().await?;
    stop_clock(&database).await;
    let one = replica(database.clone(), "one", SessionLimits::default()).await;
    let two = replica(database.clone(), "two", SessionLimits::default()).await;
    Some((fixture(&one), fixture(&two), database))
}

fn busy_at(replica: &str) -> SessionError {
    SessionError::Busy {
        leaving: false,
        replica: Some(replica.into()),
    }
}

fn fenced_by(replica: Option<&str>) -> SessionError {
    SessionError::Fenced {
        replica: replica.map(Into::into),
    }
}

#[tokio::test]
async fn each_replica_continues_what_the_other_has_committed() {
    let Some((one, two, _)) = two().await else {
        return;
    };
    let mut position = 0;
    for turn in 0..6 {
        let at = if turn % 3 == 0 { &one } else { &two };
        let opened = at.open("a").await.unwrap();
        let found = opened.start.as_ref().map_or(0, |s| s.state.position);
        assert_eq!(found, position);
        at.finish(opened, 5, "call").await.unwrap();
        position += 5;
        assert_eq!(one.position("a").await, position);
        assert_eq!(two.position("a").await, position);
    }
}

#[tokio::test]
async fn a_session_in_use_names_the_replica_that_uses_it() {
    let Some((one, two, _)) = two().await else {
        return;
    };
    // A first call, and a later one.
    for _ in 0..2 {
        let opened = one.open("a").await.unwrap();
        assert_eq!(two.open("a").await.unwrap_err(), busy_at("one"));
        one.finish(opened, 5, "call").await.unwrap();
    }
    let opened = two.open("a").await.unwrap();
    assert_eq!(one.export("a").await.unwrap_err(), busy_at("two"));
    two.abandon(opened).await;
    one.call("a", 5).await.unwrap();
}

#[tokio::test]
async fn a_replica_whose_lease_was_taken_over_commits_nothing() {
    let Some((one, two, database)) = two().await else {
        return;
    };
    one.call("a", 10).await.unwrap();
    let zombie = one.open("a").await.unwrap();
    expire_leases(&database).await;
    // While the other call runs, and once it is over.
    let other = two.open("a").await.unwrap();
    let outcome = one.finish(zombie, 7, "zombie").await;
    assert_eq!(outcome, Err(fenced_by(Some("two"))));
    two.finish(other, 5, "other").await.unwrap();
    let zombie = one.open("a").await.unwrap();
    expire_leases(&database).await;
    two.call("a", 1).await.unwrap();
    let outcome = one.finish(zombie, 7, "zombie").await;
    assert_eq!(outcome, Err(fenced_by(None)));
    assert_eq!(one.position("a").await, 16);
}

#[tokio::test]
async fn a_lease_that_nobody_took_over_can_still_be_committed() {
    let Some((one, _, database)) = two().await else {
        return;
    };
    let slow = one.open("a").await.unwrap();
    expire_leases(&database).await;
    one.finish(slow, 7, "slow").await.unwrap();
    assert_eq!(one.position("a").await, 7);
}

#[tokio::test]
async fn a_suspended_call_does_not_touch_a_session_that_was_created_again() {
    let Some((one, two, _)) = two().await else {
        return;
    };
    one.call("a", 10).await.unwrap();
    let suspended = one.open("a").await.unwrap();
    two.storage.delete(&key("a")).await.unwrap();
    two.call("a", 3).await.unwrap();
    assert_eq!(one.finish(suspended, 7, "old").await, Err(fenced_by(None)));
    assert_eq!(one.position("a").await, 3);
    let suspended = one.open("a").await.unwrap();
    two.storage.delete(&key("a")).await.unwrap();
    assert_eq!(
        one.finish(suspended, 7, "old").await,
        Err(SessionError::Deleted)
    );
    assert_eq!(two.get("a").await, Err(SessionError::Unknown));
}

#[tokio::test]
async fn only_one_of_two_first_calls_runs() {
    let Some((one, two, _)) = two().await else {
        return;
    };
    for round in 0..20 {
        let id = format!("s{round}");
        let (first, second) = tokio::join!(one.open(&id), two.open(&id));
        let (winner, loser) = match (first, second) {
            (Ok(opened), Err(error)) => (one.finish(opened, 5, "p").await, error),
            (Err(error), Ok(opened)) => (two.finish(opened, 5, "p").await, error),
            both => panic!("{both:?}"),
        };
        winner.unwrap();
        assert!(matches!(loser, SessionError::Busy { .. }), "{loser:?}");
        assert_eq!(one.position(&id).await, 5);
    }
}

#[tokio::test]
async fn a_renewal_ends_the_calls_whose_sessions_are_gone() {
    let Some(database) = test_database().await else {
        return;
    };
    stop_clock(&database).await;
    let sessions = replica(database.clone(), "one", SessionLimits::default()).await;
    let one = fixture(&sessions);
    let two = fixture(&replica(database.clone(), "two", SessionLimits::default()).await);
    for id in ["kept", "deleted", "taken"] {
        one.call(id, 1).await.unwrap();
    }
    let kept = one.open("kept").await.unwrap();
    let deleted = one.open("deleted").await.unwrap();
    let taken = one.open("taken").await.unwrap();
    two.storage.delete(&key("deleted")).await.unwrap();
    let statement = sqlx::query(
        "UPDATE session_leases SET until = clock_timestamp() - interval '1 second'
        WHERE id = 'taken'",
    );
    database.fetch_all(statement).await.unwrap();
    let other = two.open("taken").await.unwrap();
    sessions.shared.renew().await;
    assert_eq!(kept.lease.status(), LeaseStatus::Held);
    assert_eq!(deleted.lease.status(), LeaseStatus::Deleted);
    let fenced = LeaseStatus::Fenced {
        replica: Some("two".into()),
    };
    assert_eq!(taken.lease.status(), fenced);
    one.finish(kept, 1, "p").await.unwrap();
    two.finish(other, 1, "p").await.unwrap();
}

#[tokio::test]
async fn a_lease_ends_for_its_call_unless_it_is_renewed() {
    let Some(database) = test_database().await else {
        return;
    };
    let sessions = replica(database, "one", SessionLimits::default()).await;
    let one = fixture(&sessions);
    let opened = one.open("a").await.unwrap();
    opened.lease.state().expire_at(BootTime::now());
    assert_eq!(opened.lease.status(), LeaseStatus::Expired);
    sessions.shared.renew().await;
    assert_eq!(opened.lease.status(), LeaseStatus::Held);
}

#[tokio::test]
async fn a_shutdown_gives_sessions_to_other_replicas_at_once() {
    let Some((one, two, _)) = two().await else {
        return;
    };
    one.call("a", 5).await.unwrap();
    let running = one.open("a").await.unwrap();
    one.storage.shutdown().await.unwrap();
    two.call("a", 5).await.unwrap();
    assert_eq!(
        one.finish(running, 5, "p").await,
        Err(SessionError::Stopping)
    );
    assert_eq!(two.position("a").await, 10);
}

#[tokio::test]
async fn a_model_is_retired_on_all_replicas() {
    let Some((one, two, _)) = two().await else {
        return;
    };
    let book = model("book", 1);
    let first = two.open("a").await.unwrap();
    let in_use = SessionError::ModelInUse {
        model: book.clone(),
        sessions: 1,
    };
    let retired = one.storage.retire_model(&book, AllowedSessions::None);
    assert_eq!(retired.await, Err(in_use));
    two.abandon(first).await;
    let retired = one.storage.retire_model(&book, AllowedSessions::None);
    retired.await.unwrap();
    let error = two.open("a").await.unwrap_err();
    assert_eq!(error, SessionError::ModelRetired(book));
}

#[tokio::test]
async fn an_eviction_by_one_replica_is_seen_by_the_other() {
    let Some(database) = test_database().await else {
        return;
    };
    stop_clock(&database).await;
    let limits = SessionLimits {
        max_sessions: 2,
        ..SessionLimits::default()
    };
    let one = fixture(&replica(database.clone(), "one", limits).await);
    let two = fixture(&replica(database, "two", limits).await);
    for id in ["a", "b"] {
        one.call(id, 1).await.unwrap();
    }
    let held = two.open("a").await.unwrap();
    one.call("c", 1).await.unwrap();
    assert_eq!(
        two.get("b").await,
        Err(SessionError::Evicted(EvictionReason::Capacity))
    );
    two.finish(held, 1, "p").await.unwrap();
    assert_eq!(one.ids().await, ["a", "c"]);
}

#[tokio::test]
async fn a_jump_of_the_clock_evicts_nothing() {
    let Some((one, two, database)) = two().await else {
        return;
    };
    one.call("a", 1).await.unwrap();
    let jump =
        sqlx::query("UPDATE session_clock SET seen = clock_timestamp() - interval '400 days'");
    database.fetch_all(jump).await.unwrap();
    two.call("b", 1).await.unwrap();
    let idle = one.get("a").await.unwrap().idle;
    assert!(idle < Duration::from_secs(120), "{idle:?}");
    let back =
        sqlx::query("UPDATE session_clock SET seen = clock_timestamp() + interval '400 days'");
    database.fetch_all(back).await.unwrap();
    two.call("b", 1).await.unwrap();
    assert_eq!(one.ids().await, ["b", "a"]);
}

#[tokio::test]
async fn a_model_is_either_deleted_or_used_by_a_first_call_on_another_replica() {
    let Some((one, two, _)) = two().await else {
        return;
    };
    let book = model("book", 1);
    for round in 0..20 {
        let id = format!("s{round}");
        let retiring = one.storage.retire_model(&book, AllowedSessions::None);
        let (retired, opened) = tokio::join!(retiring, two.open(&id));
        match (retired, opened) {
            (Ok(()), Err(error)) => {
                assert_eq!(error, SessionError::ModelRetired(book.clone()));
                one.storage.reinstate_model(&book).await.unwrap();
            }
            (Err(error), Ok(opened)) => {
                let in_use = SessionError::ModelInUse {
                    model: book.clone(),
                    sessions: 1,
                };
                assert_eq!(error, in_use);
                two.abandon(opened).await;
            }
            both => panic!("{both:?}"),
        }
    }
}

#[tokio::test]
async fn a_session_of_a_newer_arithmetic_revision_is_rejected_and_left_alone() {
    let Some((one, _, database)) = two().await else {
        return;
    };
    one.call("a", 5).await.unwrap();
    let newer = sqlx::query("UPDATE sessions SET revision = 2");
    database.fetch_all(newer).await.unwrap();
    let rejected = SessionError::UnknownRevision(2);
    assert_eq!(one.open("a").await.unwrap_err(), rejected);
    assert_eq!(one.export("a").await.unwrap_err(), rejected);
    let text = rejected.to_string();
    assert!(text.contains("revision 2"), "{text}");
    // The newer program can continue it, and anyone can see and delete it.
    assert_eq!(one.position("a").await, 5);
    one.storage.delete(&key("a")).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_a_jump_of_the_clock_has_ended_is_fenced() {
    let Some((one, two, database)) = two().await else {
        return;
    };
    // Ahead by an hour: for the database, the leases of all running calls are over.
    one.call("a", 10).await.unwrap();
    let running = one.open("a").await.unwrap();
    let jump = sqlx::query("UPDATE session_leases SET until = until - interval '1 hour'");
    database.fetch_all(jump).await.unwrap();
    // The lease of the call itself is measured by the machine of its replica.
    assert_eq!(running.lease.status(), LeaseStatus::Held);
    two.call("a", 1).await.unwrap();
    let outcome = one.finish(running, 7, "p").await;
    assert_eq!(outcome, Err(fenced_by(None)));
    assert_eq!(two.position("a").await, 11);
}
