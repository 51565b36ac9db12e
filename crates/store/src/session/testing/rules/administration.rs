//! Deleting, copying and listing sessions, and the models that they use.

use super::{evicted, plenty};
use crate::session::testing::fixture::{Start, commit, identity, key, model, request, state};
use crate::session::{
    AllowedSessions, EvictionReason, ForkRequest, ImportRequest, LeaseStatus, ListRequest,
    OpenRequest, Owner, SessionCommit, SessionError, SessionId, SessionKey, SessionRecord,
};

pub async fn deleting_ends_a_running_call_and_frees_the_name(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn a_fork_is_where_the_original_is_and_leaves_it_alone(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn an_exported_record_can_be_imported_under_another_name(start: Start) {
    let fixture = start(plenty()).await;
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
    assert_eq!(fixture.stats().await.pending_creates, 0);
}

pub async fn two_owners_can_use_the_same_id(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn pages_go_from_the_most_recently_used_to_the_least(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn model_versions_in_use_are_counted_and_can_be_retired(start: Start) {
    let fixture = start(plenty()).await;
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

pub async fn sessions_of_a_model_can_be_evicted(start: Start) {
    let fixture = start(plenty()).await;
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
