//! Sessions that clients hold.

use charlstm_store::session::{SealError, SessionSnapshot};

use super::controlled_storage::ControlledStorage;
use super::*;

pub(super) fn start_without_storage() -> (Engine, Arc<TestModels>) {
    let storage = ControlledStorage::new();
    // A call that touches the store fails.
    storage.set_unavailable(true);
    start_on(config(), storage)
}

/// A call that starts from a snapshot, and returns one.
fn held_call(snapshot: Option<&SessionSnapshot>, prompt: &str, max_chars: u64) -> GenerateCall {
    let session = snapshot.map_or(SessionSource::None, |snapshot| {
        SessionSource::Snapshot(Box::new(snapshot.clone()))
    });
    GenerateCall {
        session,
        snapshot_for: Some(Owner::admin()),
        seed: snapshot.is_none().then_some(1),
        ..call(prompt, max_chars)
    }
}

#[tokio::test]
async fn a_session_that_the_client_holds_continues_without_the_store() {
    let (engine, models) = start_without_storage();
    let (straight, _) = reference(&models, "abc", 200, 1);
    let first = whole(&engine, held_call(None, "abc", 100)).await;
    let snapshot = first.finished.snapshot.unwrap();
    assert_eq!(snapshot.principal, Owner::admin());
    assert_eq!(snapshot.state.position, 103);
    let second = whole(&engine, held_call(Some(&snapshot), "", 100)).await;
    assert_eq!(second.started.position, 103);
    assert_eq!(second.started.session, None);
    assert_eq!(second.finished.position, 203);
    assert_eq!(first.text + &second.text, straight);
    // A snapshot can be continued any number of times, like a fork.
    let again = whole(&engine, held_call(Some(&snapshot), "", 100)).await;
    assert_eq!(again.text, second.text);
    // And without returning one.
    let mut last = held_call(Some(&snapshot), "", 100);
    last.snapshot_for = None;
    let last = whole(&engine, last).await;
    assert_eq!(last.text, second.text);
    assert_eq!(last.finished.snapshot, None);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_repeat_with_the_reported_seed_gives_the_same_text() {
    let (engine, _) = start_without_storage();
    let first = whole(&engine, held_call(None, "abc", 50)).await;
    let snapshot = first.finished.snapshot.unwrap();
    let original = held_call(Some(&snapshot), "d", 50);
    let once = whole(&engine, original.clone()).await;
    let again = whole(&engine, repeat(&original, &once.started)).await;
    assert_eq!(again.text, once.text);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_does_not_match_the_call_is_rejected() {
    let (engine, models) = start_without_storage();
    let first = whole(&engine, held_call(None, "abc", 50)).await;
    let snapshot = first.finished.snapshot.unwrap();
    let mut elsewhere = held_call(Some(&snapshot), "", 5);
    elsewhere.expected_position = Some(50);
    let error = GenerateError::SnapshotPosition {
        expected: 50,
        position: 53,
    };
    assert_eq!(rejection(&engine, elsewhere).await, error);
    models.add("other", 1, 9);
    let mut other = held_call(Some(&snapshot), "", 5);
    other.model = "other".to_owned();
    let other_model = GenerateError::Snapshot(SealError::OtherModel);
    assert_eq!(rejection(&engine, other).await, other_model);
    let mut float32 = held_call(Some(&snapshot), "", 5);
    float32.precision = Some(Precision::Float32);
    let error = rejection(&engine, float32).await;
    assert_eq!(
        error.to_string(),
        "the snapshot was made with precision int8, not float32"
    );
    let mut too_small = snapshot.clone();
    too_small.state.network = Some(vec![0; 8].into());
    let error = rejection(&engine, held_call(Some(&too_small), "", 5)).await;
    assert!(matches!(
        error,
        GenerateError::Snapshot(SealError::Content(_))
    ));
    // Another file under the same name and version is another model.
    models.add("m", 1, 3);
    let changed = held_call(Some(&snapshot), "", 5);
    assert_eq!(rejection(&engine, changed).await, other_model);
    models.remove(&models.resolve("m").unwrap());
    let error = rejection(&engine, held_call(Some(&snapshot), "", 5)).await;
    assert!(matches!(error, GenerateError::Model(_)), "{error}");
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_shut_down_returns_the_session_at_its_reader() {
    let (engine, models) = start_without_storage();
    let mut stream = engine
        .generate(held_call(None, "abc", 1_000_000))
        .await
        .unwrap();
    let mut taken = read_some(&mut stream, 30).await;
    let stopper = engine.clone();
    let stop = tokio::spawn(async move { stopper.stop().await });
    let finished = loop {
        match stream.next().await.unwrap().unwrap() {
            GenerationEvent::Text(event) => taken.push_str(&event.text),
            GenerationEvent::Finished(finished) => break finished,
            GenerationEvent::Started(_) => {}
        }
    };
    stop.await.unwrap().unwrap();
    assert_eq!(finished.reason, FinishReason::Shutdown);
    let snapshot = finished.snapshot.unwrap();
    assert_eq!(snapshot.state.position, 3 + taken.len() as u64);

    let (again, _) = start_without_storage();
    let (straight, _) = reference(&models, "abc", taken.len() as u64 + 40, 1);
    let rest = text(&again, held_call(Some(&snapshot), "", 40)).await;
    assert_eq!(taken + &rest, straight);
    again.stop().await.unwrap();
}
