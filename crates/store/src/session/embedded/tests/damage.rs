//! Damaged files, and files of other versions.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::simulated_disk::SimulatedDisk;
use super::{OpenError, open, open_with, small};
use crate::session::embedded::database::{Database, DatabaseError};
use crate::session::embedded::disk::Disk;
use crate::session::testing::fixture::{Fixture, key, state};
use crate::session::{Durability, EvictionReason, SessionError, SessionLimits};

type Files = BTreeMap<String, Vec<u8>>;

/// A store after a kill: ten sessions in the database, five of which changed
/// in the log after that, and one more there.
async fn store() -> Files {
    let disk = SimulatedDisk::new(1);
    let fixture = open(&disk).unwrap();
    for at in 0..10 {
        fixture.call(&format!("s{at}"), 3).await.unwrap();
    }
    fixture.storage.shutdown().await.unwrap();
    drop(fixture);
    // Nothing is moved out of this log, and its file is small.
    let tuning = super::Tuning {
        log_bytes: 64 << 10,
        log_age: std::time::Duration::from_secs(3600),
        reserve_bytes: 0,
        ..small(Durability::Committed)
    };
    let fixture = open_with(&disk, SessionLimits::default(), tuning).unwrap();
    for at in 0..5 {
        fixture.call(&format!("s{at}"), 4).await.unwrap();
    }
    fixture.call("new", 7).await.unwrap();
    let killed = disk.kill(1);
    drop(fixture);
    killed.files()
}

fn is_log(name: &str) -> bool {
    std::path::Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "log")
}

/// Positions that a session may be at, the last commit first.
fn positions(id: &str) -> &'static [u64] {
    match id {
        "s0" | "s1" | "s2" | "s3" | "s4" => &[7, 3],
        "new" => &[7],
        _ => &[3],
    }
}

/// What was found of the sessions of [`store`].
#[derive(Debug, Default)]
struct Found {
    whole: u64,
    earlier: u64,
    evicted: u64,
    unreadable: u64,
    unknown: u64,
}

async fn look(fixture: &Fixture) -> Found {
    let mut found = Found::default();
    for id in [
        "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "new",
    ] {
        match fixture.export(id).await {
            Ok(record) => {
                let position = record.end.position;
                assert_eq!(record.end, state(position), "{id}");
                assert!(positions(id).contains(&position), "{id} {position}");
                if position == positions(id)[0] {
                    found.whole += 1;
                } else {
                    found.earlier += 1;
                }
            }
            Err(SessionError::Evicted(EvictionReason::Damaged)) => found.evicted += 1,
            Err(SessionError::Unavailable(_)) => found.unreadable += 1,
            Err(SessionError::Unknown) => found.unknown += 1,
            Err(error) => panic!("{id}: {error}"),
        }
    }
    found
}

#[tokio::test]
async fn an_undamaged_store_is_found_whole() {
    let files = store().await;
    let fixture = open(&SimulatedDisk::with_files(files, 1)).unwrap();
    assert_eq!(look(&fixture).await.whole, 11);
}

// The files were written by the first version of this format, which was killed
// with changes in the log. They must never change: stores look like this.
#[tokio::test]
async fn format_1_of_a_store_is_read_as_it_always_was() {
    let files = [
        (
            "sessions.redb",
            &include_bytes!("../../../../tests/data/store-1/sessions.redb")[..],
        ),
        (
            "sessions-0000000000000002.log",
            include_bytes!("../../../../tests/data/store-1/sessions-0000000000000002.log"),
        ),
        (
            "sessions-0000000000000003.log",
            include_bytes!("../../../../tests/data/store-1/sessions-0000000000000003.log"),
        ),
    ];
    let files = files.map(|(name, content)| (name.to_owned(), content.to_vec()));
    let disk = SimulatedDisk::with_files(files.into(), 1);
    let fixture = open(&disk).unwrap();
    assert_eq!(look(&fixture).await.whole, 11);
    fixture.call("s0", 1).await.unwrap();
    fixture.storage.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_affects_the_change_it_is_in() {
    let files = store().await;
    let log = files.keys().find(|name| is_log(name)).unwrap().clone();
    let used = files[&log].iter().rposition(|&byte| byte != 0).unwrap();
    let mut affected = 0;
    for at in (0..used).step_by(11) {
        let mut files = files.clone();
        files.get_mut(&log).unwrap()[at] ^= 1 << (at % 8);
        let disk = SimulatedDisk::with_files(files, 1);
        let fixture = open(&disk).unwrap_or_else(|error| panic!("{at}: {error}"));
        let found = look(&fixture).await;
        assert!(found.whole >= 10, "{at}: {found:?}");
        assert_eq!(found.whole + found.earlier + found.unknown, 11);
        affected += 11 - found.whole;
        fixture.storage.shutdown().await.unwrap();
    }
    assert!(affected > 0);
}

#[tokio::test]
async fn a_flipped_bit_in_the_database_never_leads_to_a_wrong_state() {
    let files = store().await;
    let mut random = StdRng::seed_from_u64(5);
    let database = &files["sessions.redb"];
    let used: Vec<usize> = (0..database.len())
        .filter(|&at| database[at] != 0)
        .collect();
    let mut rejected = 0;
    let mut not_whole = 0;
    for _ in 0..300 {
        let mut damaged = files.clone();
        let at = used[random.random_range(0..used.len())];
        let bit = random.random_range(0..8);
        damaged.get_mut("sessions.redb").unwrap()[at] ^= 1 << bit;
        let before = damaged["sessions.redb"].clone();
        let disk = SimulatedDisk::with_files(damaged, 1);
        match open(&disk) {
            Ok(fixture) => {
                let found = look(&fixture).await;
                assert_eq!(found.unknown, 0, "{at}.{bit}: {found:?}");
                not_whole += u64::from(found.whole < 11);
                // Whatever is not damaged can be used, or says why not.
                let called = fixture.call("another", 1).await;
                assert!(
                    matches!(called, Ok(_) | Err(SessionError::Unavailable(_))),
                    "{at}.{bit}: {called:?}"
                );
                // May fail, but neither hang nor panic.
                let _ = fixture.storage.shutdown().await;
            }
            Err(error) => {
                rejected += 1;
                assert!(
                    matches!(error, OpenError::Damaged { .. } | OpenError::Format { .. }),
                    "{at}.{bit}: {error}"
                );
                assert!(disk.files().contains_key("sessions.redb"));
                assert_eq!(disk.files()["sessions.redb"].len(), before.len());
            }
        }
    }
    assert!(not_whole > 0 && rejected > 0, "{not_whole} {rejected}");
}

#[tokio::test]
async fn a_flipped_bit_in_a_name_does_not_make_a_session_unknown() {
    let files = store().await;
    let database = &files["sessions.redb"];
    let names = database.windows(8).enumerate();
    let names: Vec<usize> = names
        .filter(|(_, window)| window.starts_with(b"admin\0s"))
        .map(|(at, _)| at + 7)
        .collect();
    assert!(names.len() >= 20);
    for (bit, at) in names.into_iter().enumerate() {
        let mut damaged = files.clone();
        damaged.get_mut("sessions.redb").unwrap()[at] ^= 1 << (bit % 3);
        let disk = SimulatedDisk::with_files(damaged, 1);
        match open(&disk) {
            Ok(fixture) => {
                let found = look(&fixture).await;
                assert_eq!(found.unknown, 0, "{at}: {found:?}");
                // A name that is out of order hides its neighbours in the page:
                // they are reported as damaged as well.
                assert_eq!(found.whole + found.evicted, 11, "{at}: {found:?}");
                assert!(found.whole >= 6, "{at}: {found:?}");
                let _ = fixture.storage.shutdown().await;
            }
            Err(error) => assert!(matches!(error, OpenError::Damaged { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_file_that_is_empty_cut_or_something_else_is_reported_and_kept() {
    let files = store().await;
    let mut random = StdRng::seed_from_u64(5);
    for name in files.keys() {
        let whole = &files[name];
        let used = whole.iter().rposition(|&byte| byte != 0).unwrap_or(0);
        let mut garbage = vec![0; 10_000];
        random.fill_bytes(&mut garbage);
        for (kind, content) in [
            ("empty", Vec::new()),
            ("cut to a byte", whole[..1].to_vec()),
            ("cut in half", whole[..used / 2].to_vec()),
            ("cut by a byte", whole[..used].to_vec()),
            ("garbage", garbage),
            ("zeros", vec![0; whole.len()]),
        ] {
            let mut damaged = files.clone();
            damaged.insert(name.clone(), content.clone());
            let disk = SimulatedDisk::with_files(damaged, 1);
            match open(&disk) {
                Ok(fixture) => {
                    let found = look(&fixture).await;
                    let is_prepared = used < 64;
                    assert!(is_log(name), "{name} {kind}");
                    assert!(found.whole >= 5, "{name} {kind}: {found:?}");
                    assert!(!is_prepared || found.whole == 11, "{name} {kind}");
                    let _ = fixture.storage.shutdown().await;
                }
                Err(OpenError::Damaged { file, .. }) => {
                    assert!(file.ends_with(name), "{name} {kind}");
                    let now = disk.files();
                    assert!(now[name].starts_with(&content), "{name} {kind}");
                    assert!(files.keys().all(|name| now.contains_key(name)));
                }
                Err(error) => panic!("{name} {kind}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_record_is_moved_aside_and_the_others_are_not_affected() {
    let files = store().await;
    // The end state of s7, which only its record has.
    let pattern = state(3).network.unwrap();
    let database = &files["sessions.redb"];
    let name = b"admin\0s7";
    let record = database
        .windows(4)
        .enumerate()
        .filter(|(_, window)| *window == b"CHSR")
        .map(|(at, _)| at)
        .find(|&at| {
            let header = &database[at..at + 40];
            header.windows(2).any(|window| window == &name[6..])
        })
        .unwrap();
    let place = database[record..]
        .windows(pattern.len())
        .position(|window| window == &pattern[..])
        .unwrap();
    let mut damaged = files.clone();
    damaged.get_mut("sessions.redb").unwrap()[record + place + 5] ^= 0x10;
    let disk = SimulatedDisk::with_files(damaged, 1);
    let fixture = open(&disk).unwrap();
    let gone = SessionError::Evicted(EvictionReason::Damaged);
    assert_eq!(fixture.open("s7").await.err(), Some(gone.clone()));
    let found = look(&fixture).await;
    assert_eq!((found.whole, found.evicted), (10, 1));
    fixture.storage.shutdown().await.unwrap();
    drop(fixture);
    let fixture = open(&disk).unwrap();
    assert_eq!(fixture.open("s7").await.err(), Some(gone));
    assert_eq!(fixture.storage.stats().damaged, 1);
    fixture.storage.delete(&key("s7")).await.unwrap();
    fixture.call("s7", 1).await.unwrap();
}

#[tokio::test]
async fn logs_without_their_database_are_reported_and_kept() {
    let mut files = store().await;
    files.remove("sessions.redb");
    let disk = SimulatedDisk::with_files(files.clone(), 1);
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, OpenError::DatabaseMissing(_)), "{error}");
    assert!(disk.files() == files);
}

#[tokio::test]
async fn a_store_of_another_version_is_rejected_and_kept() {
    let files = store().await;
    let disk = SimulatedDisk::with_files(files.clone(), 1);
    let database = Database::open(disk.open("sessions.redb").unwrap(), 1 << 20).unwrap();
    let format = 2_u32.to_le_bytes();
    let changed: Result<(), DatabaseError> =
        database.change(|tables| tables.set("format", &format));
    changed.unwrap();
    drop(database);
    let before = disk.file_names();
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, OpenError::Format { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("format 2 is not supported; this version reads format 1"));
    assert_eq!(disk.file_names(), before);
    // A log of another version.
    let log = files.keys().find(|name| is_log(name)).unwrap().clone();
    let mut other = files.clone();
    let header = &mut other.get_mut(&log).unwrap()[..28];
    header[8] = 2;
    let checksum = crc32c::crc32c(&header[..24]).to_le_bytes();
    header[24..].copy_from_slice(&checksum);
    let disk = SimulatedDisk::with_files(other.clone(), 1);
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, OpenError::Format { .. }), "{error}");
    assert_eq!(disk.files()[&log], other[&log]);
}

/// Users would see a stack trace in front of the message.
#[test]
fn a_panic_of_redb_about_damage_is_not_printed() {
    let test = "session::embedded::tests::damage::a_flipped_bit_in_the_database_never_leads_to_a_wrong_state";
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&run.stderr);
    assert!(!printed.contains("panicked"), "{printed}");
    assert!(String::from_utf8_lossy(&run.stdout).contains("1 passed"));
}
