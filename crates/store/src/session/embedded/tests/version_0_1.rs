//! The import of sessions of version 0.1. The files in `tests/data/version-0.1`
//! were written by its code.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::simulated_disk::SimulatedDisk;
use super::{EmbeddedSessions, EmbeddedSettings, OpenError, open, small};
use crate::session::testing::fixture::{Fixture, identity, key};
use crate::session::{
    Durability, EvictionReason, ImportedLegacy, Owner, Precision, RandomState, RunningClock,
    SessionError, SessionIdentity, SessionRecord, SessionStorage, TokenIds,
};

const SESSIONS: &[u8] = include_bytes!("../../../../tests/data/version-0.1/sessions.bin");
const NAMES: &[u8] = include_bytes!("../../../../tests/data/version-0.1/sessions.ids");

fn files(sessions: &[u8], names: &[u8]) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([
        ("sessions.bin".to_owned(), sessions.to_vec()),
        ("sessions.ids".to_owned(), names.to_vec()),
    ])
}

fn disk() -> SimulatedDisk {
    SimulatedDisk::with_files(files(SESSIONS, NAMES), 1)
}

async fn imported(disk: &SimulatedDisk) -> ImportedLegacy {
    let sessions = EmbeddedSessions::open_on(
        Arc::new(disk.clone()),
        Path::new("sessions"),
        EmbeddedSettings::default(),
        small(Durability::Committed),
        Some(Arc::new(RunningClock::manual())),
    );
    let sessions = sessions.unwrap();
    sessions.shutdown().await.unwrap();
    sessions.imported()
}

/// The state that the file has at a position.
fn network(position: u16) -> Vec<u8> {
    let numbers = (0..8_u8).map(|at| f32::from(position) + f32::from(at) / 8.0);
    numbers.flat_map(f32::to_le_bytes).collect()
}

async fn assert_imported(fixture: &Fixture) {
    assert_eq!(
        fixture.ids().await,
        ["long", "fork", "tale", "wide", "old-2", "old-1"]
    );
    let book = SessionIdentity {
        digest: [9; 32],
        precision: Precision::Float32,
        ..identity("book", 3)
    };
    let tale = fixture.export("tale").await.unwrap();
    assert_eq!(tale.identity, book);
    assert_eq!(tale.key.owner, Owner::admin());
    assert_eq!((tale.begin.position, tale.end.position), (12, 19));
    assert_eq!(tale.begin.network.as_deref(), Some(&network(12)[..]));
    assert_eq!(tale.end.network.as_deref(), Some(&network(19)[..]));
    assert_eq!(tale.end.unfed, [19].as_slice().into());
    assert_eq!(tale.end.random, RandomState { seed: 7, draws: 19 });
    let tokens: TokenIds = (13..=19).collect();
    assert_eq!(tale.last_call.tokens, Some(tokens));
    assert_eq!(tale.last_call.parameters, None);
    // One whose end is written as its beginning and what followed.
    let wide = fixture.export("wide").await.unwrap();
    assert_eq!(wide.end.position, 19);
    assert_eq!(wide.end.network, wide.begin.network);
    let unfed: TokenIds = [12].into_iter().chain(1_013..=1_019).collect();
    assert_eq!(wide.end.unfed, unfed);
    let long = fixture.export("long").await.unwrap();
    assert_eq!((long.begin.position, long.end.position), (0, 3_000));
    assert_eq!(long.begin.network, None);
    for (id, reason) in [
        ("evicted-1", EvictionReason::Capacity),
        ("idle", EvictionReason::Idle),
        ("lost", EvictionReason::Restart),
    ] {
        let found = fixture.get(id).await;
        assert_eq!(found, Err(SessionError::Evicted(reason)), "{id}");
    }
    let deleted = fixture.get("deleted").await;
    assert_eq!(deleted, Err(SessionError::Unknown));
}

#[tokio::test]
async fn sessions_and_tombstones_are_imported_once_and_continue() {
    let disk = disk();
    assert_eq!(
        imported(&disk).await,
        ImportedLegacy {
            sessions: 6,
            lost: 1,
            damaged: 0
        }
    );
    let fixture = open(&disk).unwrap();
    assert_imported(&fixture).await;
    let names = disk.file_names();
    assert!(names.contains(&"sessions.bin.imported".to_owned()));
    assert!(names.contains(&"sessions.ids.imported".to_owned()));
    assert!(!names.contains(&"sessions.bin".to_owned()));
    // The last call can be repeated, and the session continues.
    let opened = fixture.open_at("tale", 12).await.unwrap();
    fixture.finish(opened, 3, "other").await.unwrap();
    assert_eq!(fixture.position("tale").await, 15);
    fixture.storage.delete(&key("lost")).await.unwrap();
    let disk = disk.restart(1);
    drop(fixture);
    assert_eq!(imported(&disk).await, ImportedLegacy::default());
    let fixture = open(&disk).unwrap();
    assert_eq!(fixture.position("tale").await, 15);
    assert_eq!(fixture.get("lost").await, Err(SessionError::Unknown));
}

#[tokio::test]
async fn an_import_that_a_crash_interrupts_is_repeated() {
    for after in 0..80 {
        let disk = disk();
        disk.cut_after(after);
        let opened = open(&disk);
        let disk = disk.restart(after);
        drop(opened);
        let fixture = open(&disk).unwrap();
        assert_imported(&fixture).await;
        assert!(
            disk.file_names()
                .contains(&"sessions.bin.imported".to_owned())
        );
    }
}

#[tokio::test]
async fn files_that_appear_after_the_import_are_rejected_and_kept() {
    let disk = disk();
    let fixture = open(&disk).unwrap();
    fixture.storage.shutdown().await.unwrap();
    let mut files = disk.files();
    files.insert("sessions.bin".to_owned(), SESSIONS.to_vec());
    let disk = SimulatedDisk::with_files(files.clone(), 1);
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, OpenError::LegacyFileAppeared(_)));
    let text = error.to_string();
    assert!(text.contains("sessions/sessions.bin"), "{text}");
    assert!(text.contains("not merged"), "{text}");
    assert_eq!(disk.files()["sessions.bin"], SESSIONS);
    // Also if there was nothing to import the first time.
    let disk = SimulatedDisk::new(1);
    let fixture = open(&disk).unwrap();
    fixture.storage.shutdown().await.unwrap();
    let mut files = disk.files();
    files.insert("sessions.ids".to_owned(), NAMES.to_vec());
    let disk = SimulatedDisk::with_files(files, 1);
    assert!(matches!(open(&disk), Err(OpenError::LegacyFileAppeared(_))));
}

#[tokio::test]
async fn after_a_crash_of_version_0_1_its_sessions_are_known_as_lost() {
    // It removed sessions.bin as soon as it had read it.
    let mut files = files(SESSIONS, NAMES);
    files.remove("sessions.bin");
    let disk = SimulatedDisk::with_files(files, 1);
    assert_eq!(imported(&disk).await.lost, 9);
    let fixture = open(&disk).unwrap();
    assert!(fixture.ids().await.is_empty());
    let lost = SessionError::Evicted(EvictionReason::Restart);
    assert_eq!(fixture.open("tale").await.err(), Some(lost));
}

#[tokio::test]
async fn a_damaged_record_does_not_affect_the_others() {
    let mut sessions = SESSIONS.to_vec();
    // In the middle of the first record, and cut off in the last one.
    sessions[60] ^= 1;
    let end = sessions.len() - 200;
    sessions.truncate(end);
    let disk = SimulatedDisk::with_files(files(&sessions, NAMES), 1);
    assert_eq!(
        imported(&disk).await,
        ImportedLegacy {
            sessions: 4,
            lost: 5,
            damaged: 2
        }
    );
    let fixture = open(&disk).unwrap();
    let ids = fixture.ids().await;
    assert_eq!(ids, ["fork", "tale", "wide", "old-2"]);
    assert_eq!(fixture.storage.stats().damaged, 2);
    let lost = SessionError::Evicted(EvictionReason::Restart);
    assert_eq!(fixture.get("old-1").await, Err(lost));
}

#[tokio::test]
async fn something_else_under_the_name_is_rejected_and_kept() {
    let other = b"CHLF\x02\x00 a later version".to_vec();
    let disk = SimulatedDisk::with_files(files(&other, NAMES), 1);
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(disk.files()["sessions.bin"], other);
    assert_eq!(disk.files()["sessions.ids"], NAMES);
}

#[test]
fn an_export_of_version_0_1_is_read_as_a_record() {
    let export = include_bytes!("../../../../tests/data/version-0.1/export.chls");
    let record: SessionRecord =
        super::super::legacy::parse_export(&bytes::Bytes::from_static(export)).unwrap();
    assert_eq!(record.key, key("tale"));
    assert_eq!(record.end.position, 19);
    for at in 0..export.len() {
        let mut changed = export.to_vec();
        changed[at] ^= 4;
        assert!(super::super::legacy::parse_export(&changed.into()).is_err());
    }
}
