//! Limits, evictions, and what is known of evicted sessions.

use std::time::Duration;

use super::{at_most, evicted, plenty};
use crate::session::testing::fixture::{Start, key, request};
use crate::session::{
    EvictionReason, ForkRequest, ImportRequest, OpenRequest, SessionError, SessionId,
    SessionLimits, SessionRecord,
};

pub async fn the_least_recently_used_session_is_evicted_for_a_new_one(start: Start) {
    let fixture = start(at_most(3)).await;
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
    let stats = fixture.stats().await;
    assert_eq!((stats.sessions, stats.tombstones), (3, 1));
    assert_eq!(stats.evicted[&EvictionReason::Capacity], 1);
    // A call that comes to nothing costs no session.
    fixture.abandon(fixture.open("e").await.unwrap()).await;
    assert_eq!(fixture.ids().await, ["d", "a", "c"]);
}

pub async fn the_limit_on_bytes_evicts_too(start: Start) {
    let fixture = start(plenty()).await;
    fixture.call("a", 1).await.unwrap();
    let bytes = fixture.stats().await.bytes;
    let limits = SessionLimits {
        max_bytes: 3 * bytes + bytes / 2,
        ..plenty()
    };
    let fixture = start(limits).await;
    for id in ["a", "b", "c", "d", "e"] {
        fixture.call(id, 1).await.unwrap();
        assert!(fixture.stats().await.bytes <= limits.max_bytes);
    }
    assert_eq!(fixture.ids().await, ["e", "d", "c"]);
    assert_eq!(fixture.get("a").await, evicted(EvictionReason::Capacity));
}

pub async fn an_imported_session_that_is_evicted_at_once_was_imported(start: Start) {
    let fixture = start(at_most(2)).await;
    fixture.call("a", 1).await.unwrap();
    let record = fixture.export("a").await.unwrap();
    let imports: Vec<_> = (0..60)
        .map(|number| {
            let fixture = fixture.clone();
            let record = SessionRecord {
                key: key(&format!("i{number}")),
                ..SessionRecord::clone(&record)
            };
            tokio::spawn(async move {
                let key = record.key.clone();
                let request = ImportRequest {
                    record,
                    owner_limit: None,
                };
                (key, fixture.storage.import(request).await)
            })
        })
        .collect();
    for import in imports {
        match import.await.unwrap() {
            (key, Ok(info)) => assert_eq!((info.key, info.position), (key, record.end.position)),
            // All places are taken by imports that have not ended.
            (_, Err(error)) => assert_eq!(error, SessionError::Full),
        }
    }
}

pub async fn sessions_in_use_are_never_evicted(start: Start) {
    let limits = SessionLimits {
        max_idle: Duration::from_secs(60),
        ..at_most(2)
    };
    let fixture = start(limits).await;
    fixture.call("a", 1).await.unwrap();
    fixture.call("b", 1).await.unwrap();
    let a = fixture.open("a").await.unwrap();
    fixture.advance(Duration::from_secs(61)).await;
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

pub async fn idle_sessions_are_evicted_by_running_time(start: Start) {
    let limits = SessionLimits {
        max_idle: Duration::from_secs(60),
        ..plenty()
    };
    let fixture = start(limits).await;
    fixture.call("a", 1).await.unwrap();
    fixture.advance(Duration::from_secs(59)).await;
    assert_eq!(fixture.get("a").await.unwrap().idle.as_secs(), 59);
    fixture.call("b", 1).await.unwrap();
    fixture.call("c", 1).await.unwrap();
    fixture.advance(Duration::from_secs(1)).await;
    assert_eq!(fixture.get("a").await, evicted(EvictionReason::Idle));
    assert_eq!(fixture.ids().await, ["c", "b"]);
    let error = fixture.open("a").await.unwrap_err();
    assert_eq!(error, SessionError::Evicted(EvictionReason::Idle));
    assert_eq!(fixture.stats().await.tombstones, 1);
    fixture.call("b", 1).await.unwrap();
    fixture.advance(Duration::from_secs(59)).await;
    assert_eq!(fixture.ids().await, ["b"]);
    assert_eq!(fixture.export("c").await, evicted(EvictionReason::Idle));
}

pub async fn without_limits_no_session_is_ever_too_old(start: Start) {
    let fixture = start(SessionLimits::UNLIMITED).await;
    fixture.call("a", 1).await.unwrap();
    fixture.advance(Duration::from_secs(4000 * 24 * 3600)).await;
    fixture.call("b", 1).await.unwrap();
    assert_eq!(fixture.ids().await, ["b", "a"]);
}

pub async fn a_tombstone_is_kept_until_the_session_is_deleted_or_recreated(start: Start) {
    let fixture = start(at_most(1)).await;
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

pub async fn old_tombstones_make_room_for_new_ones(start: Start) {
    let limits = SessionLimits {
        max_tombstones: 3,
        ..at_most(1)
    };
    let fixture = start(limits).await;
    for at in 0..10 {
        fixture.call(&format!("s{at}"), 1).await.unwrap();
    }
    assert_eq!(fixture.stats().await.tombstones, 3);
    assert_eq!(fixture.get("s5").await, Err(SessionError::Unknown));
    for at in 6..9 {
        let info = fixture.get(&format!("s{at}")).await;
        assert_eq!(info, evicted(EvictionReason::Capacity));
    }
}

pub async fn an_owner_has_a_limit_of_its_own(start: Start) {
    let fixture = start(plenty()).await;
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
    fixture.abandon(second).await;
    fixture.finish(first, 1, "p").await.unwrap();
    fixture.abandon(limited("a").await.unwrap()).await;
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
