//! Tests of the history.

#![allow(clippy::unwrap_used)]

mod shared;

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::kept::{Kind, MAX_SAMPLE_BYTES, MAX_STEP_EVENTS};
use super::lines::line;
use super::opening::DAMAGED;
use super::*;
use crate::events::{Accepted, CheckpointSaved, EpochProgress, Finished, Resumed, StepProgress};

fn accepted() -> Accepted {
    Accepted {
        corpus_chars: 9,
        vocabulary_size: 3,
        steps_per_epoch: 3,
        total_steps: 9,
        parameters: 7,
        device: "cpu".to_owned(),
    }
}

fn first() -> EventKind {
    EventKind::Accepted(accepted())
}

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

fn epoch_with_sample(epoch: u32, sample: String) -> EventKind {
    EventKind::Epoch(EpochProgress {
        epoch,
        step: u64::from(epoch),
        train_loss: 3.0,
        validation_loss: None,
        bits_per_char: 4.0,
        seconds: 1.0,
        chars_per_second: 1.0,
        sample,
        best: false,
    })
}

fn epoch(epoch: u32) -> EventKind {
    epoch_with_sample(epoch, "é\n\u{2028}".to_owned())
}

fn checkpoint(step: u64) -> EventKind {
    EventKind::Checkpoint(CheckpointSaved { step })
}

fn resumed(run: u32) -> EventKind {
    EventKind::Resumed(Resumed {
        run,
        step: 1,
        replica: String::new(),
        device: "cpu".to_owned(),
        threads: 2,
        precision: "float32".to_owned(),
        instructions: "avx512".to_owned(),
        message: String::new(),
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
    let history = History::create(&path(&folder)).unwrap();
    history.append(first());
    (folder, Arc::new(history))
}

fn path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("events.jsonl")
}

fn open(folder: &tempfile::TempDir) -> Arc<History> {
    Arc::new(History::open(&path(folder), accepted).unwrap())
}

fn kinds(history: &History) -> Vec<EventKind> {
    let events = history.events();
    events.iter().map(|event| event.event.clone()).collect()
}

#[tokio::test]
async fn every_watcher_gets_every_event_from_its_position_on() {
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
    let expected: Vec<EventKind> = [first()]
        .into_iter()
        .chain((1..=5).map(epoch))
        .chain([finished(State::Succeeded)])
        .collect();
    assert_eq!(live.await.unwrap(), expected);
    assert_eq!(all(&history, 0).await, expected);
    assert_eq!(all(&history, 3).await, expected[3..]);
    assert_eq!(all(&history, 99).await, []);
}

#[tokio::test]
async fn the_end_of_a_run_that_was_resumed_is_not_the_end_for_a_watcher() {
    let (folder, history) = new();
    history.append(epoch(1));
    history.append(finished(State::Cancelled));
    history.append_durable(resumed(2)).unwrap();
    let summary = history.summary();
    assert_eq!((summary.state, summary.run), (State::Queued, 2));
    assert_eq!(summary.message, "");
    history.append(epoch(2));
    history.append(finished(State::Succeeded));
    let expected = [
        first(),
        epoch(1),
        resumed(2),
        epoch(2),
        finished(State::Succeeded),
    ];
    assert_eq!(all(&history, 0).await, expected);
    drop(history);
    assert_eq!(all(&open(&folder), 0).await, expected);
}

#[test]
fn a_training_that_was_resumed_has_not_ended_after_a_crash() {
    for after in [vec![], vec![step(2)], vec![step(2), checkpoint(2)]] {
        let (folder, history) = new();
        history.append(step(1));
        history.append(finished(State::Cancelled));
        history.append_durable(resumed(2)).unwrap();
        for event in after {
            history.append(event);
        }
        drop(history);
        assert!(!open(&folder).summary().state.has_ended());
    }
}

#[test]
fn what_version_0_1_reported_after_an_end_shows_that_it_was_resumed() {
    let (folder, history) = new();
    history.append(finished(State::Failed));
    history.append(step(2));
    drop(history);
    let summary = open(&folder).summary();
    assert_eq!((summary.state, summary.run), (State::Running, 1));
}

#[tokio::test]
async fn a_history_is_read_back_without_its_torn_last_line() {
    let (folder, history) = new();
    history.append(step(1));
    history.append(epoch(1));
    drop(history);
    let mut file = OpenOptions::new().append(true).open(path(&folder)).unwrap();
    file.write_all(b"{\"sequence\":3,\"ev").unwrap();

    let history = open(&folder);
    assert_eq!(history.summary().epochs_completed, 1);
    history.append(finished(State::Interrupted));
    drop(history);
    let history = open(&folder);
    let sequences: Vec<u64> = history.events().iter().map(|e| e.sequence).collect();
    assert_eq!(sequences, [0, 1, 2, 3]);
    assert_eq!(all(&history, 1).await[0], step(1));
    assert!(!path(&folder).with_extension(DAMAGED).exists());
}

#[test]
fn a_history_without_its_last_byte_keeps_its_last_event() {
    let (folder, history) = new();
    history.append(epoch(1));
    history.append(finished(State::Succeeded));
    drop(history);
    let bytes = fs::read(path(&folder)).unwrap();
    fs::write(path(&folder), &bytes[..bytes.len() - 1]).unwrap();
    for _ in 0..2 {
        let history = open(&folder);
        assert_eq!(history.summary().state, State::Succeeded);
        assert_eq!(history.events().len(), 3);
    }
    assert_eq!(fs::read(path(&folder)).unwrap(), bytes);
}

#[test]
fn a_damaged_line_only_loses_its_own_event_and_is_kept_aside() {
    let (folder, history) = new();
    for number in 1..=4 {
        history.append(epoch(number));
    }
    history.append(finished(State::Succeeded));
    drop(history);
    let sound = fs::read(path(&folder)).unwrap();
    for damage in [b"nonsense".as_slice(), b"", b"{\"sequence\":2}"] {
        let mut lines: Vec<&[u8]> = sound.split(|&byte| byte == b'\n').collect();
        lines[2] = damage;
        fs::write(path(&folder), lines.join(&b'\n')).unwrap();
        let expected = [
            first(),
            epoch(1),
            epoch(3),
            epoch(4),
            finished(State::Succeeded),
        ];
        assert_eq!(kinds(&open(&folder)), expected);
        let aside = path(&folder).with_extension(DAMAGED);
        assert_eq!(fs::read(&aside).unwrap(), [damage, b"\n"].concat());
        fs::remove_file(aside).unwrap();
        // It was repaired.
        assert_eq!(kinds(&open(&folder)), expected);
        assert!(!path(&folder).with_extension(DAMAGED).exists());
    }
}

#[test]
fn a_changed_bit_loses_at_most_one_event_and_changes_none() {
    let (folder, history) = new();
    for number in 1..=3 {
        history.append(epoch(number));
    }
    history.append(finished(State::Succeeded));
    let expected = history.events();
    drop(history);
    let sound = fs::read(path(&folder)).unwrap();
    for bit in (0..8 * sound.len()).step_by(37) {
        let mut changed = sound.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(path(&folder), &changed).unwrap();
        let events = open(&folder).events();
        // A changed line break damages the two lines that it separates.
        let lost = if sound[bit / 8] == b'\n' { 2 } else { 1 };
        assert!(events.len() + lost >= expected.len(), "bit {bit}");
        assert!(events.iter().all(|event| expected.contains(event)), "{bit}");
        assert_eq!(events[0], expected[0]);
    }
}

#[test]
fn a_wrong_sequence_number_of_version_0_1_only_loses_its_own_event() {
    let (folder, history) = new();
    for number in 1..=4 {
        history.append(epoch(number));
    }
    drop(history);
    let events = open(&folder).events();
    for (wrong, lost) in [(92, 2), (1, 2), (0, 2)] {
        let lines: Vec<String> = events
            .iter()
            .map(|event| {
                let mut event = event.as_ref().clone();
                if event.sequence == lost {
                    event.sequence = wrong;
                }
                serde_json::to_string(&event).unwrap() + "\n"
            })
            .collect();
        fs::write(path(&folder), lines.concat()).unwrap();
        let expected = [first(), epoch(1), epoch(3), epoch(4)];
        assert_eq!(kinds(&open(&folder)), expected, "{wrong}");
    }
}

#[test]
fn an_empty_or_missing_history_begins_with_its_first_event_again() {
    let (folder, history) = new();
    history.append(epoch(1));
    drop(history);
    fs::write(path(&folder), b"").unwrap();
    assert_eq!(kinds(&open(&folder)), [first()]);
    fs::remove_file(path(&folder)).unwrap();
    let history = open(&folder);
    history.append(epoch(1));
    drop(history);
    assert_eq!(kinds(&open(&folder)), [first(), epoch(1)]);
}

#[tokio::test]
async fn step_events_are_thinned_out_and_the_file_is_bounded() {
    let (folder, history) = new();
    let count = 10 * MAX_STEP_EVENTS as u64;
    for number in 0..count {
        history.append(step(number));
    }
    history.append(epoch(1));
    history.append(finished(State::Succeeded));
    for history in [history, open(&folder)] {
        let events = all(&history, 0).await;
        let is_step = |event: &&EventKind| matches!(event, EventKind::Step(_));
        let steps = events.iter().filter(is_step).count();
        assert!(
            (MAX_STEP_EVENTS / 4..=MAX_STEP_EVENTS).contains(&steps),
            "{steps}"
        );
        assert_eq!(events[..2], [first(), step(0)]);
        let end = [epoch(1), finished(State::Succeeded)];
        assert_eq!(events[events.len() - 2..], end);
    }
    let bytes = fs::metadata(path(&folder)).unwrap().len();
    let one = Event {
        sequence: count,
        event: step(count),
    };
    let most = 2 * (MAX_STEP_EVENTS * line(&one).unwrap().len()) as u64 + REWRITE_SLACK_BYTES;
    assert!(bytes <= most + 1000, "{bytes} of {most}");
}

#[test]
fn every_kind_of_event_is_bounded_and_its_last_event_is_kept() {
    let mut kept = Kept::default();
    let mut add = |event| {
        let sequence = kept.events.len() as u64;
        kept.add(Arc::new(Event { sequence, event }), 100);
    };
    add(first());
    for number in 1..=5000 {
        add(epoch(number));
        add(checkpoint(u64::from(number)));
        add(finished(State::Cancelled));
        add(resumed(number + 1));
    }
    let limits: usize = Kind::ALL.iter().map(|(_, limit)| limit).sum();
    assert!(kept.events.len() <= 1 + limits);
    assert_eq!(kept.line_bytes, 100 * kept.events.len() as u64);
    assert_eq!(kept.events[0].event.event, first());
    let newest = [epoch(5000), checkpoint(5000), resumed(5001)];
    for event in newest {
        assert!(kept.events.iter().any(|stored| stored.event.event == event));
    }
}

#[test]
fn samples_of_old_epochs_are_dropped_beyond_a_total_size() {
    let (folder, history) = new();
    let sample = "x".repeat(20_000);
    for number in 1..=40 {
        history.append(epoch_with_sample(number, sample.clone()));
    }
    for history in [history, open(&folder)] {
        let events = history.events();
        let samples: Vec<&str> = events
            .iter()
            .filter_map(|event| match &event.event {
                EventKind::Epoch(epoch) => Some(epoch.sample.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(samples.len(), 40, "the epochs themselves are kept");
        assert!(samples.concat().len() <= MAX_SAMPLE_BYTES);
        assert_eq!((samples[0], samples[39]), ("", sample.as_str()));
    }
    let bytes = fs::metadata(path(&folder)).unwrap().len();
    assert!(bytes < 800_000 - 100_000, "the file was rewritten: {bytes}");
}

#[tokio::test]
async fn events_that_a_full_disk_does_not_accept_are_written_once_it_does() {
    let (folder, history) = new();
    history.append(epoch(1));
    let full = FullDisk::under(&history);
    history.append(epoch(2));
    history.append(epoch(3));
    drop(full);
    history.append(finished(State::Failed));
    let expected = all(&history, 0).await;
    assert_eq!(expected.len(), 5);
    drop(history);
    assert_eq!(all(&open(&folder), 0).await, expected);
}

#[test]
fn an_event_that_must_be_durable_does_not_exist_if_the_disk_does_not_accept_it() {
    let (folder, history) = new();
    history.append(finished(State::Cancelled));
    let full = FullDisk::under(&history);
    assert!(history.append_durable(resumed(2)).is_err());
    assert_eq!(history.summary().state, State::Cancelled);
    drop(full);
    history.append_durable(resumed(2)).unwrap();
    let expected = [first(), finished(State::Cancelled), resumed(2)];
    assert_eq!(kinds(&history), expected);
    drop(history);
    let history = open(&folder);
    assert_eq!(kinds(&history), expected);
    assert_eq!(history.events()[2].sequence, 2);
}

#[test]
fn events_after_a_rewrite_are_in_the_file_that_has_the_name() {
    let (folder, history) = new();
    history.append(epoch(1));
    history.writer().rewrite(&mut lock(&history.kept)).unwrap();
    history.append(epoch(2));
    // Even if the folder could not be synced after the rename.
    history.writer().behind = true;
    history.append(finished(State::Succeeded));
    drop(history);
    let expected = [first(), epoch(1), epoch(2), finished(State::Succeeded)];
    assert_eq!(kinds(&open(&folder)), expected);
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary file remains");
}

/// Number of open files of this process with this path.
#[cfg(target_os = "linux")]
fn open_files(path: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    targets.filter(|target| target == path).count()
}

#[test]
#[cfg(target_os = "linux")]
fn the_history_of_an_ended_training_keeps_no_file_open_and_can_be_continued() {
    let (folder, history) = new();
    let path = path(&folder).canonicalize().unwrap();
    assert_eq!(open_files(&path), 1);
    history.append_durable(finished(State::Cancelled)).unwrap();
    assert_eq!(open_files(&path), 0, "after the end");
    drop(history);
    let history = open(&folder);
    assert_eq!(open_files(&path), 0, "after a restart");
    history.append_durable(resumed(2)).unwrap();
    assert_eq!(open_files(&path), 1, "while it runs again");
    history.append(finished(State::Succeeded));
    assert_eq!(open_files(&path), 0, "after the second end");
    let expected = kinds(&history);
    drop(history);
    assert_eq!(kinds(&open(&folder)), expected);
}
