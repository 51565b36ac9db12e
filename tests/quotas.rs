//! Quotas of principals.

use charlstm_proto::v1::*;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::principals::{Entry, Fixture};
use crate::support::wire::{self, assert_status};

const PRINCIPALS: [Entry; 3] = [
    Entry::new("root", &["admin"]),
    Entry::new("alice", &["generate", "train"]).with_quotas(
        "max_streams = 1\nmax_sessions = 2\nmax_trainings = 1\nmax_corpus_bytes = 1000",
    ),
    Entry::new("slow", &["generate"]).with_quotas("chars_per_minute = 600"),
];

/// Asserts that a quota is exceeded, and that a retry can succeed.
#[track_caller]
fn assert_quota(status: &Status, limit: &str) {
    assert_violation(status, limit);
    let details = status.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.is_some());
}

#[track_caller]
fn assert_violation(status: &Status, limit: &str) {
    assert_status(status, Code::ResourceExhausted, "QUOTA");
    assert!(status.message().contains(limit), "{status}");
    let details = status.get_error_details();
    let violations = &details.quota_failure().unwrap().violations;
    assert_eq!(violations[0].description, status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_beyond_a_quota_is_rejected_with_the_limit_and_a_delay() {
    let fixture = Fixture::start(tempfile::tempdir().unwrap(), &PRINCIPALS).await;
    assert_eq!(fixture.train("root", "verse"), Some(0));
    let alice = async |request| fixture.generate("alice", request).await;

    // One stream at a time; others are not affected.
    let endless = wire::endless(wire::start("", 1));
    let stream = fixture.open("alice", endless).await.unwrap();
    let status = alice(wire::start("", 1)).await.err().unwrap();
    assert_quota(&status, "limit of 1 generations");
    fixture.generate("root", wire::start("", 1)).await.unwrap();
    drop(stream);
    let call = async || alice(wire::start("a", 1)).await;
    wire::accepted(Code::ResourceExhausted, call).await;

    // Two sessions, exactly.
    alice(wire::start("b", 1)).await.unwrap();
    let status = alice(wire::start("c", 1)).await.err().unwrap();
    assert_quota(&status, "limit of 2 sessions");
    alice(wire::resume("b", 1)).await.unwrap();
    let fork = ForkSessionRequest {
        session_id: "a".to_owned(),
        new_session_id: "c".to_owned(),
        owner: None,
    };
    let request = fixture.of("alice", fork.clone());
    let status = fixture.sessions().fork_session(request).await;
    assert_quota(&status.unwrap_err(), "limit of 2 sessions");
    let delete = DeleteSessionRequest {
        session_id: "b".to_owned(),
        owner: None,
    };
    let request = fixture.of("alice", delete);
    fixture.sessions().delete_session(request).await.unwrap();
    let request = fixture.of("alice", fork);
    fixture.sessions().fork_session(request).await.unwrap();

    // Corpora.
    let request = fixture.of(
        "alice",
        StartTrainingRequest {
            spec: Some(TrainingSpec {
                model: "own".to_owned(),
                ..TrainingSpec::default()
            }),
            corpus: "a".repeat(1001).into(),
        },
    );
    let status = fixture.trainings().start_training(request).await;
    let status = status.unwrap_err();
    assert_violation(&status, "limit of 1000 bytes");
    let details = status.get_error_details();
    assert!(details.retry_info().is_none(), "a retry cannot succeed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_rate_slows_a_text_down_and_does_not_change_it() {
    let fixture = Fixture::start(tempfile::tempdir().unwrap(), &PRINCIPALS).await;
    assert_eq!(fixture.train("root", "verse"), Some(0));
    let fast = fixture.generate("root", wire::start("", 25)).await.unwrap();
    let slow = fixture.generate("slow", wire::start("", 25)).await.unwrap();
    assert_eq!(slow.text, fast.text);
    assert_eq!(slow.finished.reason, fast.finished.reason);
}
