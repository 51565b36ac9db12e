//! Tests of the history.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::events::{CheckpointSaved, EpochProgress, StepProgress};

fn step(step: u64) -> EventKind {
    EventKind::Step(StepProgress {
        epoch: 1,
        step,
        total_steps: 9,
        loss: 0.1 + 0.2,
        gradient_norm: 1.0,
        chars_per_second: 1.0,
        eta_seconds: 1.0,
        learning_rate: 0.001,
    })
}

fn epoch(epoch: u32) -> EventKind {
    EventKind::Epoch(EpochProgress {
        epoch,
        step: u64::from(epoch),
        train_loss: 3.0,
        validation_loss: None,
        bits_per_char: 4.0,
        seconds: 1.0,
        chars_per_second: 1.0,
        sample: "é\n\u{2028}".to_owned(),
        best: false,
    })
}

fn finished(state: State) -> EventKind {
    EventKind::Finished(Finished {
        state,
        version: 0,
        train_loss: None,
        validation_loss: None,
        message: "m".to_owned(),
        best_epoch: None,
    })
}

async fn all(history: &Arc<History>, from: u64) -> Vec<EventKind> {
    let mut watcher = Watcher::new(Arc::clone(history), from);
    let mut events = Vec::new();
    while let Some(event) = watcher.next().await {
        events.push(event.event.clone());
    }
    events
}

fn new() -> (tempfile::TempDir, Arc<History>) {
    let folder = tempfile::tempdir().unwrap();
    let history = History::create(&folder.path().join("events.jsonl")).unwrap();
    (folder, Arc::new(history))
}

#[tokio::test]
async fn every_watcher_gets_every_event_from_its_place_on() {
    let (_folder, history) = new();
    let live = tokio::spawn({
        let history = Arc::clone(&history);
        async move { all(&history, 0).await }
    });
    for number in 1..=5 {
        history.append(epoch(number));
        tokio::task::yield_now().await;
    }
    history.append(finished(State::Succeeded));
    let expected: Vec<EventKind> = (1..=5)
        .map(epoch)
        .chain([finished(State::Succeeded)])
        .collect();
    assert_eq!(live.await.unwrap(), expected);
    assert_eq!(all(&history, 0).await, expected);
    assert_eq!(all(&history, 3).await, expected[3..]);
    assert_eq!(all(&history, 99).await, []);
}

#[tokio::test]
async fn the_end_of_a_resumed_training_is_not_told() {
    let (_folder, history) = new();
    history.append(epoch(1));
    history.append(finished(State::Cancelled));
    history.set_active(State::Queued);
    history.append(epoch(2));
    history.append(finished(State::Succeeded));
    assert_eq!(
        all(&history, 0).await,
        [epoch(1), epoch(2), finished(State::Succeeded)]
    );
}

#[tokio::test]
async fn a_history_is_read_back_without_its_torn_last_line() {
    let (folder, history) = new();
    history.append(step(1));
    history.append(epoch(1));
    history.append(EventKind::Checkpoint(CheckpointSaved { step: 1 }));
    drop(history);
    let path = folder.path().join("events.jsonl");
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"sequence\":3,\"ev").unwrap();

    let history = Arc::new(History::open(&path).unwrap());
    assert_eq!(history.summary().epochs_completed, 1);
    assert!(history.summary().has_checkpoint);
    history.append(finished(State::Interrupted));
    drop(history);
    let history = Arc::new(History::open(&path).unwrap());
    let sequences: Vec<u64> = history.events().iter().map(|e| e.sequence).collect();
    assert_eq!(sequences, [0, 1, 2, 3]);
    assert_eq!(all(&history, 0).await[0], step(1));
}

#[test]
fn a_line_that_is_no_event_is_an_error_and_not_a_loss_in_silence() {
    let (folder, history) = new();
    history.append(step(1));
    let path = folder.path().join("events.jsonl");
    fs::write(&path, b"nonsense\n").unwrap();
    assert!(History::open(&path).is_err());
}

#[tokio::test]
async fn step_events_are_thinned_and_others_never() {
    let (folder, history) = new();
    let steps = 3 * MAX_STEP_EVENTS as u64;
    for number in 0..steps {
        history.append(step(number));
        if number % 500 == 0 {
            history.append(epoch(1));
        }
    }
    history.append(finished(State::Succeeded));
    let events = all(&history, 0).await;
    let count = |is: fn(&EventKind) -> bool| events.iter().filter(|event| is(event)).count();
    assert!(count(|event| matches!(event, EventKind::Step(_))) <= MAX_STEP_EVENTS);
    assert_eq!(count(|event| matches!(event, EventKind::Epoch(_))), 6);
    assert_eq!(events[0], step(0));
    drop(history);
    let again = Arc::new(History::open(&folder.path().join("events.jsonl")).unwrap());
    assert_eq!(all(&again, 0).await, events);
}

#[tokio::test]
async fn what_a_full_disk_did_not_take_is_written_once_it_takes_events_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    History::create(&path).unwrap().append(epoch(1));
    let history = Arc::new(History::open(&path).unwrap());
    // Writes to it find no room; nor does the file beside it.
    let sound = lock(&history.writer).file.try_clone().unwrap();
    lock(&history.writer).file = File::options().write(true).open("/dev/full").unwrap();
    fs::create_dir(path.with_extension("new")).unwrap();
    history.append(epoch(2));
    fs::remove_dir(path.with_extension("new")).unwrap();
    lock(&history.writer).file = sound;
    history.append(finished(State::Failed));
    let expected = all(&history, 0).await;
    assert_eq!(expected.len(), 3);
    drop(history);
    let again = Arc::new(History::open(&path).unwrap());
    assert_eq!(all(&again, 0).await, expected);
}
