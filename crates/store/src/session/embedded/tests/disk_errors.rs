//! Errors of the disk, and slow disks.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use super::simulated_disk::{Fault, SimulatedDisk, What};
use super::{EmbeddedSessions, EmbeddedSettings, open, open_with, small};
use crate::session::testing::fixture::{Fixture, abandon, key, state};
use crate::session::{Durability, RunningClock, SessionError, SessionLimits, SessionStorage};

/// Waits for something that the threads of the store will do.
pub(super) async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    for _ in 0..20_000 {
        if happened().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never happened: {what}");
}

/// A log that is not moved into the database during a test.
fn one_log(durability: Durability) -> super::Tuning {
    super::Tuning {
        log_bytes: 1 << 20,
        log_age: Duration::from_secs(3600),
        ..small(durability)
    }
}

fn is_unavailable<T>(outcome: &Result<T, SessionError>) -> bool {
    matches!(outcome, Err(SessionError::Unavailable(_)))
}

/// A store with the sessions `s0` to `s39`, each of 3 characters.
async fn with_sessions(disk: &SimulatedDisk) -> Fixture {
    let fixture = open(disk).unwrap();
    for at in 0..40 {
        fixture.call(&format!("s{at}"), 3).await.unwrap();
    }
    fixture
}

/// Waits until the store is available and its disk is idle.
async fn recovered(fixture: &Fixture, disk: &SimulatedDisk) {
    until("the store recovers", async || {
        fixture.storage.check_available().is_ok()
    })
    .await;
    let mut operations = disk.operations();
    until("the disk is idle", async || {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let before = std::mem::replace(&mut operations, disk.operations());
        before == operations
    })
    .await;
}

#[tokio::test]
async fn a_commit_is_neither_acknowledged_nor_visible_before_it_is_synced() {
    let disk = SimulatedDisk::new(1);
    let fixture = open_with(
        &disk,
        SessionLimits::default(),
        one_log(Durability::Committed),
    )
    .unwrap();
    fixture.call("a", 5).await.unwrap();
    recovered(&fixture, &disk).await;
    disk.hold_syncs(true);
    let opened = fixture.open("a").await.unwrap();
    let commit = crate::session::testing::fixture::commit(&opened, 5, "p");
    let waiting = tokio::spawn(fixture.storage.commit(opened.lease, commit));
    until("the sync begins", async || disk.held_syncs() > 0).await;
    assert!(!waiting.is_finished());
    let info = fixture.get("a").await.unwrap();
    assert_eq!((info.position, info.busy), (5, true));
    assert!(matches!(
        fixture.open("a").await,
        Err(SessionError::Busy { .. })
    ));
    disk.hold_syncs(false);
    waiting.await.unwrap().unwrap();
    assert_eq!(fixture.position("a").await, 10);
}

#[tokio::test]
async fn one_sync_covers_all_commits_that_wait() {
    let disk = SimulatedDisk::new(1);
    let fixture = open_with(
        &disk,
        SessionLimits::default(),
        one_log(Durability::Committed),
    )
    .unwrap();
    let mut opened = Vec::new();
    for at in 0..100 {
        opened.push(fixture.open(&format!("s{at}")).await.unwrap());
    }
    recovered(&fixture, &disk).await;
    let before = disk.syncs();
    disk.hold_syncs(true);
    let mut waiting = Vec::new();
    for opened in opened {
        let commit = crate::session::testing::fixture::commit(&opened, 5, "p");
        waiting.push(fixture.storage.commit(opened.lease, commit));
        if waiting.len() == 1 {
            until("the first sync begins", async || disk.held_syncs() > 0).await;
        }
    }
    disk.hold_syncs(false);
    for waiting in waiting {
        waiting.await.unwrap();
    }
    assert_eq!(disk.syncs() - before, 2);
    assert_eq!(fixture.storage.stats().sessions, 100);
}

#[tokio::test]
async fn a_commit_is_carried_out_even_if_nobody_waits_for_it() {
    let disk = SimulatedDisk::new(1);
    let fixture = open(&disk).unwrap();
    let opened = fixture.open("a").await.unwrap();
    let commit = crate::session::testing::fixture::commit(&opened, 5, "p");
    drop(fixture.storage.commit(opened.lease, commit));
    fixture.storage.released(&key("a")).await;
    assert_eq!(fixture.position("a").await, 5);
}

/// Calls in some sessions while operations of the disk fail. Returns the
/// position of each session that was acknowledged last.
async fn calls(fixture: &Fixture, count: u64) -> [u64; 3] {
    let mut positions = [0; 3];
    for (at, position) in positions.iter_mut().enumerate() {
        let info = fixture.get(&format!("s{at}")).await;
        *position = info.map_or(0, |info| info.position);
    }
    for at in 0..count {
        let id = usize::try_from(at % 3).unwrap();
        match fixture.call(&format!("s{id}"), 3).await {
            Ok(outcome) => {
                assert_eq!(outcome.position, positions[id] + 3);
                positions[id] = outcome.position;
            }
            Err(SessionError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
        // A session is at its last commit, whatever has failed.
        let info = fixture.get(&format!("s{id}")).await;
        assert_eq!(info.map_or(0, |info| info.position), positions[id]);
    }
    positions
}

async fn assert_positions(fixture: &Fixture, positions: [u64; 3]) {
    for (at, position) in positions.into_iter().enumerate() {
        let record = fixture.export(&format!("s{at}")).await;
        match record {
            Ok(record) => assert_eq!(record.end, state(position)),
            Err(SessionError::Unknown) => assert_eq!(position, 0),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(fixture.storage.stats().damaged, 0);
}

/// Lets every operation fail in turn, once or a few times, and holds what is
/// there afterwards, and after a power cut, against what was acknowledged.
async fn every_operation_fails(kind: ErrorKind, what: What) {
    let mut failed = 0;
    for after in 0..60 {
        let disk = SimulatedDisk::new(after);
        let fixture = open(&disk).unwrap();
        calls(&fixture, 9).await;
        recovered(&fixture, &disk).await;
        let count = 1 + after % 3;
        disk.set_fault(Some(Fault {
            kind,
            what,
            after,
            count,
        }));
        let before = calls(&fixture, 30).await;
        failed += u64::from(fixture.storage.check_available().is_err());
        disk.set_fault(None);
        recovered(&fixture, &disk).await;
        assert_positions(&fixture, before).await;
        let positions = calls(&fixture, 6).await;
        let sum = |positions: [u64; 3]| positions.iter().sum::<u64>();
        assert_eq!(sum(positions), sum(before) + 18, "{after}");
        let disk = disk.restart(after);
        drop(fixture);
        let fixture = open(&disk).unwrap();
        assert_positions(&fixture, positions).await;
    }
    assert!(failed > 0, "no failure was noticed");
}

#[tokio::test]
async fn a_failed_sync_loses_nothing_that_was_acknowledged() {
    every_operation_fails(ErrorKind::Other, What::Syncs).await;
}

#[tokio::test]
async fn a_change_that_failed_does_not_appear_after_a_power_cut() {
    for seed in 0..40 {
        let disk = SimulatedDisk::new(seed);
        let start = || {
            let tuning = one_log(Durability::Committed);
            open_with(&disk, SessionLimits::default(), tuning).unwrap()
        };
        let fixture = start();
        fixture.call("a", 3).await.unwrap();
        fixture.storage.shutdown().await.unwrap();
        // The log that fails has nothing else in it: nothing moves it into
        // the database.
        let fixture = start();
        recovered(&fixture, &disk).await;
        disk.set_fault(Some(Fault {
            kind: ErrorKind::Other,
            what: What::Syncs,
            after: 0,
            count: 1,
        }));
        assert!(is_unavailable(&fixture.call("b", 3).await));
        assert_eq!(fixture.get("b").await, Err(SessionError::Unknown));
        until("a call succeeds", async || {
            fixture.call("a", 3).await.is_ok()
        })
        .await;
        let disk = disk.restart(seed);
        drop(fixture);
        let fixture = open(&disk).unwrap();
        assert_eq!(fixture.get("b").await, Err(SessionError::Unknown), "{seed}");
        assert_eq!(fixture.position("a").await, 6);
    }
}

#[tokio::test]
async fn a_failed_write_loses_nothing_that_was_acknowledged() {
    every_operation_fails(ErrorKind::Other, What::Changes).await;
}

#[tokio::test]
async fn a_disk_that_is_full_for_a_moment_loses_nothing_that_was_acknowledged() {
    every_operation_fails(ErrorKind::StorageFull, What::Changes).await;
}

#[tokio::test]
async fn on_a_full_disk_calls_that_have_begun_commit_and_no_others_begin() {
    let disk = SimulatedDisk::new(1);
    let fixture = with_sessions(&disk).await;
    recovered(&fixture, &disk).await;
    let mut begun = Vec::new();
    for at in 0..10 {
        begun.push(fixture.open(&format!("s{at}")).await.unwrap());
    }
    disk.set_free(Some(0));
    // What is freed is used again for a while.
    let mut created = 0;
    until("calls are rejected", async || {
        let called = fixture.call(&format!("new{created}"), 1).await;
        if let Err(error) = &called {
            assert!(matches!(error, SessionError::Unavailable(_)), "{error}");
            return true;
        }
        created += 1;
        false
    })
    .await;
    // Rejected when it is opened, before it computes anything.
    let rejected = fixture.open("s21").await;
    assert!(is_unavailable(&rejected), "{rejected:?}");
    let deleted = fixture.storage.delete(&key("s22")).await;
    assert!(is_unavailable(&deleted), "{deleted:?}");
    assert!(!fixture.storage.stats().available);
    for opened in begun {
        fixture.finish(opened, 4, "p").await.unwrap();
    }
    // What can be read is read.
    for at in 0..40 {
        let id = format!("s{at}");
        let record = fixture.export(&id).await.unwrap();
        assert_eq!(record.end.position, fixture.position(&id).await);
    }
    assert_eq!(fixture.storage.stats().sessions, 40 + created);
    disk.set_free(None);
    recovered(&fixture, &disk).await;
    fixture.call("s21", 1).await.unwrap();
    for at in 0..10 {
        assert_eq!(fixture.position(&format!("s{at}")).await, 7);
    }
}

#[tokio::test]
async fn on_a_read_only_disk_sessions_can_be_read_and_later_be_changed_again() {
    let disk = SimulatedDisk::new(1);
    let fixture = with_sessions(&disk).await;
    fixture.storage.shutdown().await.unwrap();
    drop(fixture);
    // Nothing is cached now.
    let fixture = open(&disk).unwrap();
    recovered(&fixture, &disk).await;
    fixture.call("s0", 3).await.unwrap();
    disk.set_fault(Some(Fault {
        kind: ErrorKind::ReadOnlyFilesystem,
        what: What::Changes,
        after: 0,
        count: u64::MAX,
    }));
    until("calls are rejected", async || {
        is_unavailable(&fixture.call("s1", 3).await)
    })
    .await;
    for at in 0..40 {
        let id = format!("s{at}");
        let record = fixture.export(&id).await.unwrap();
        assert_eq!(record.end.position, fixture.position(&id).await);
    }
    assert!(is_unavailable(&fixture.open("s2").await));
    disk.set_fault(None);
    recovered(&fixture, &disk).await;
    fixture.call("s2", 3).await.unwrap();
    let disk = disk.restart(1);
    drop(fixture);
    let fixture = open(&disk).unwrap();
    assert_eq!(fixture.position("s0").await, 6);
    assert_eq!(fixture.position("s2").await, 6);
    assert_eq!(fixture.ids().await.len(), 40);
}

/// Reads all sessions, with nothing cached, while reads fail. Returns how many
/// sessions were read.
async fn read_while_reads_fail(disk: &SimulatedDisk, after: u64, count: u64) -> usize {
    let disk = disk.restart(after);
    let uncached = super::Tuning {
        page_cache_bytes: 0,
        ..small(Durability::Committed)
    };
    let fixture = open_with(&disk, SessionLimits::default(), uncached).unwrap();
    recovered(&fixture, &disk).await;
    disk.set_fault(Some(Fault {
        kind: ErrorKind::Other,
        what: What::Reads,
        after,
        count,
    }));
    let mut read = 0;
    for at in 0..40 {
        match fixture.export(&format!("s{at}")).await {
            Ok(record) => {
                assert_eq!(record.end, state(3));
                read += 1;
            }
            Err(SessionError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let has_failed = disk.fault().is_some_and(|fault| fault.count < count);
    assert!(has_failed, "no read has failed: {after}, {count}");
    disk.set_fault(None);
    for at in 0..40 {
        let id = format!("s{at}");
        until("the session can be read", async || {
            fixture.export(&id).await.is_ok()
        })
        .await;
    }
    assert_eq!(fixture.storage.stats().damaged, 0);
    read
}

#[tokio::test]
async fn a_read_that_fails_once_is_repeated_and_later_reads_succeed() {
    let disk = SimulatedDisk::new(1);
    let fixture = with_sessions(&disk).await;
    fixture.storage.shutdown().await.unwrap();
    for after in 0..8 {
        assert_eq!(read_while_reads_fail(&disk, after, 1).await, 40, "{after}");
        let read = read_while_reads_fail(&disk, after, u64::MAX).await;
        assert!(read < 40, "{after}");
    }
}

#[tokio::test]
async fn a_store_opens_on_a_full_disk_and_is_read() {
    let disk = SimulatedDisk::new(1);
    let _fixture = with_sessions(&disk).await;
    // With and without logs that are not in the database yet.
    for is_clean in [false, true] {
        let disk = disk.kill(1);
        if is_clean {
            open(&disk).unwrap().storage.shutdown().await.unwrap();
        }
        for kind in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
            disk.set_free(Some(0));
            disk.set_fault((kind == ErrorKind::ReadOnlyFilesystem).then_some(Fault {
                kind,
                what: What::Changes,
                after: 2,
                count: u64::MAX,
            }));
            // Syncing the logs to be read fails on a read-only disk.
            let Ok(fixture) = open(&disk) else {
                assert!(!is_clean && kind == ErrorKind::ReadOnlyFilesystem);
                continue;
            };
            for at in 0..40 {
                let id = format!("s{at}");
                let record = fixture.export(&id).await.unwrap();
                assert_eq!(record.end, state(3), "{id}");
            }
            // Once the logs are in the database, there is space for new ones.
            assert!(!is_clean || is_unavailable(&fixture.open("s2").await));
            disk.set_free(None);
            disk.set_fault(None);
            recovered(&fixture, &disk).await;
            fixture.call("new", 3).await.unwrap();
            fixture.storage.delete(&key("new")).await.unwrap();
            fixture.storage.shutdown().await.unwrap();
        }
    }
}

/// Commits that run while the store is shut down: whatever is acknowledged is
/// there afterwards.
#[tokio::test]
async fn every_change_that_is_acknowledged_around_a_shutdown_is_saved() {
    for round in 0..40_u64 {
        let durability = match round % 2 {
            0 => Durability::Committed,
            _ => Durability::Relaxed,
        };
        let disk = SimulatedDisk::new(round);
        let fixture = open_with(&disk, SessionLimits::default(), small(durability)).unwrap();
        let mut callers = Vec::new();
        for caller in 0..4 {
            let fixture = fixture.clone();
            callers.push(tokio::spawn(async move {
                let id = format!("s{caller}");
                let mut position = 0;
                loop {
                    match fixture.call(&id, 1).await {
                        Ok(outcome) => position = outcome.position,
                        Err(SessionError::Stopping) => return position,
                        Err(error) => panic!("{error}"),
                    }
                    tokio::task::yield_now().await;
                }
            }));
        }
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        fixture.storage.shutdown().await.unwrap();
        let mut positions = Vec::new();
        for caller in callers {
            positions.push(caller.await.unwrap());
        }
        let disk = disk.restart(round);
        drop(fixture);
        let fixture = open_with(&disk, SessionLimits::default(), small(durability)).unwrap();
        for (caller, position) in positions.into_iter().enumerate() {
            let info = fixture.get(&format!("s{caller}")).await;
            assert_eq!(info.map_or(0, |info| info.position), position);
        }
    }
}

#[tokio::test]
async fn a_slow_disk_holds_up_commits_and_nothing_else() {
    let disk = SimulatedDisk::new(1);
    let fixture = open(&disk).unwrap();
    fixture.call("a", 3).await.unwrap();
    disk.set_sync_delay(Duration::from_millis(100));
    let mut waiting = Vec::new();
    for at in 0..50 {
        let opened = fixture.open(&format!("s{at}")).await.unwrap();
        let commit = crate::session::testing::fixture::commit(&opened, 5, "p");
        waiting.push(fixture.storage.commit(opened.lease, commit));
    }
    assert_eq!(fixture.position("a").await, 3);
    abandon(fixture.open("a").await.unwrap());
    for waiting in waiting {
        waiting.await.unwrap();
    }
    assert_eq!(fixture.storage.stats().sessions, 51);
}

#[tokio::test]
async fn relaxed_changes_survive_a_failing_log_and_a_shutdown() {
    for after in 0..20 {
        let disk = SimulatedDisk::new(after);
        let tuning = small(Durability::Relaxed);
        let fixture = open_with(&disk, SessionLimits::default(), tuning).unwrap();
        calls(&fixture, 9).await;
        disk.set_fault(Some(Fault {
            kind: ErrorKind::Other,
            what: What::Changes,
            after,
            count: 2,
        }));
        let positions = calls(&fixture, 30).await;
        fixture.storage.shutdown().await.unwrap();
        drop(fixture);
        let disk = disk.restart(after);
        let fixture = open_with(&disk, SessionLimits::default(), tuning).unwrap();
        assert_positions(&fixture, positions).await;
    }
}

#[tokio::test]
async fn a_power_cut_takes_relaxed_changes_back_to_an_earlier_commit_as_a_whole() {
    for seed in 0..40 {
        let disk = SimulatedDisk::new(seed);
        let tuning = small(Durability::Relaxed);
        let fixture = open_with(&disk, SessionLimits::default(), tuning).unwrap();
        disk.cut_after(seed * 2);
        for at in 0..40 {
            let id = format!("s{}", at % 3);
            if fixture.call(&id, 3).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let disk = disk.restart(seed);
        drop(fixture);
        let fixture = open_with(&disk, SessionLimits::default(), tuning).unwrap();
        for id in fixture.ids().await {
            let record = fixture.export(&id).await.unwrap();
            assert_eq!(record.end.position % 3, 0);
            assert_eq!(record.begin, state(record.end.position - 3));
            assert_eq!(record.end, state(record.end.position));
        }
        assert_eq!(fixture.storage.stats().damaged, 0);
    }
}

#[tokio::test]
async fn a_shutdown_leaves_everything_in_the_database_and_no_log() {
    for durability in [Durability::Committed, Durability::Relaxed] {
        let disk = SimulatedDisk::new(1);
        let fixture = open_with(&disk, SessionLimits::default(), small(durability)).unwrap();
        let positions = calls(&fixture, 30).await;
        fixture.storage.shutdown().await.unwrap();
        assert_eq!(disk.file_names(), ["sessions.redb"]);
        drop(fixture);
        let fixture = open_with(&disk, SessionLimits::default(), small(durability)).unwrap();
        assert_positions(&fixture, positions).await;
    }
}

#[tokio::test]
async fn the_clock_of_idle_time_continues_after_a_restart() {
    let disk = SimulatedDisk::new(1);
    let fixture = open(&disk).unwrap();
    fixture.advance(Duration::from_secs(1_000)).await;
    fixture.call("a", 1).await.unwrap();
    for kill in [true, false] {
        let disk = if kill { disk.kill(1) } else { disk.restart(1) };
        let settings = EmbeddedSettings::default();
        let tuning = small(Durability::Committed);
        let folder = std::path::Path::new("sessions");
        let disk = Arc::new(disk);
        let sessions = EmbeddedSessions::open_on(disk, folder, settings, tuning, None).unwrap();
        let storage: Arc<dyn SessionStorage> = Arc::new(sessions);
        let fixture = Fixture::new(storage, Arc::new(RunningClock::manual()));
        fixture.call("b", 1).await.unwrap();
        let used = fixture.export("b").await.unwrap().last_used_ms;
        assert!((1_000_000..2_000_000).contains(&used), "{used}");
        assert!(fixture.get("a").await.unwrap().idle < Duration::from_secs(1_000));
    }
}

#[tokio::test]
async fn a_backup_made_while_calls_run_is_a_store_of_its_own() {
    let fixture = super::start_in_folder(SessionLimits::default()).await;
    for at in 0..20 {
        fixture.call(&format!("s{at}"), 3).await.unwrap();
    }
    let target = tempfile::tempdir().unwrap();
    let copy = target.path().join("copy");
    let backup = fixture.storage.backup(&copy);
    let (made, called) = tokio::join!(backup, fixture.call("during", 3));
    made.unwrap();
    called.unwrap();
    fixture.call("s0", 3).await.unwrap();
    let again = fixture.storage.backup(&copy).await;
    assert!(is_unavailable(&again), "{again:?}");
    let sessions = EmbeddedSessions::open(&copy, EmbeddedSettings::default()).unwrap();
    let restored = Fixture::new(Arc::new(sessions), Arc::new(RunningClock::manual()));
    for at in 0..20 {
        let record = restored.export(&format!("s{at}")).await.unwrap();
        assert_eq!(record.end, state(3));
    }
    restored.call("s0", 4).await.unwrap();
    assert_eq!(restored.position("s0").await, 7);
    assert_eq!(fixture.position("s0").await, 6);
}

#[tokio::test]
async fn two_servers_cannot_use_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let open = || EmbeddedSessions::open(folder.path(), EmbeddedSettings::default());
    let first = open().unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, super::OpenError::InUse(_)), "{error}");
    first.shutdown().await.unwrap();
    let second = open().unwrap();
    second.shutdown().await.unwrap();
}
