//! Measures the embedded session store on a real disk.
//!
//! ```text
//! cargo bench -p charlstm-store --bench sessions -- FOLDER WHAT [SESSIONS] [STATE_BYTES]
//! ```
//!
//! FOLDER should be on the disk to be measured; a store is kept there between
//! runs. WHAT is one of
//! - `fill`: imports SESSIONS sessions of one state of STATE_BYTES each
//! - `open`: opens the store, reports time and resident memory, and measures
//!   opening cold sessions
//! - `commit`: 64 callers commit records of 12 KB without pause, and then at
//!   about 200 and 1,000 commits a second; also relaxed and in memory, for
//!   comparison
//! - `kill`: as `commit` for a second, then ends without a shutdown, so that
//!   the next `open` recovers
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use charlstm_store::session::{
    ARITHMETIC_REVISION, Durability, EmbeddedSessions, EmbeddedSettings, ImportRequest, LastCall,
    MemorySessions, ModelVersion, OpenRequest, Owner, ParametersDigest, Precision, RandomState,
    SessionCommit, SessionId, SessionIdentity, SessionKey, SessionLimits, SessionRecord,
    SessionState, SessionStorage,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

const CALLERS: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|a| a != "--bench").collect();
    let (Some(folder), Some(what)) = (arguments.get(1), arguments.get(2)) else {
        println!("usage: FOLDER fill|open|commit|kill [SESSIONS] [STATE_BYTES]");
        return;
    };
    let number =
        |at: usize, default: u64| arguments.get(at).map_or(default, |n| n.parse().unwrap());
    let sessions = number(3, 100_000);
    let state_bytes = usize::try_from(number(4, 8_192)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let folder = Path::new(folder);
    runtime.block_on(async {
        match what.as_str() {
            "fill" => fill(folder, sessions, state_bytes).await,
            "open" => open(folder, sessions).await,
            "commit" => commit(folder, sessions).await,
            "kill" => kill(folder, sessions).await,
            other => println!("{other} is not known"),
        }
    });
}

fn start(folder: &Path, durability: Durability) -> Arc<dyn SessionStorage> {
    let settings = EmbeddedSettings {
        limits: SessionLimits {
            max_sessions: 10_000_000,
            max_bytes: u64::MAX,
            ..SessionLimits::default()
        },
        durability,
        ..EmbeddedSettings::default()
    };
    let before = Instant::now();
    let sessions = EmbeddedSessions::open(folder, settings).unwrap();
    let ms = before.elapsed().as_secs_f64() * 1e3;
    println!(
        "opened {} sessions in {ms:.0} ms, {} MB resident",
        sessions.stats().sessions,
        resident_mb()
    );
    Arc::new(sessions)
}

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kb = line.and_then(|line| line.split_whitespace().nth(1));
    kb.map_or(0, |kb| kb.parse::<u64>().unwrap() / 1024)
}

fn folder_mb(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(folder).unwrap();
    let blocks = files.map(|file| file.unwrap().metadata().unwrap().blocks());
    blocks.sum::<u64>() * 512 / 1_000_000
}

fn key(at: u64) -> SessionKey {
    // As long as a UUID, and not in the order of the database.
    let id = format!(
        "{:032x}-tale",
        u128::from(at).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C)
    );
    SessionKey::new(Owner::admin(), SessionId::new(&id).unwrap())
}

fn identity() -> SessionIdentity {
    SessionIdentity {
        model: ModelVersion {
            name: "nietzsche".into(),
            version: 3,
        },
        digest: [7; 32],
        precision: Precision::Int8,
        revision: ARITHMETIC_REVISION,
    }
}

fn state(position: u64, network: &Bytes) -> SessionState {
    if position == 0 {
        return SessionState::origin(1);
    }
    SessionState {
        network: Some(network.clone()),
        unfed: [5].as_slice().into(),
        random: RandomState {
            seed: 1,
            draws: position,
        },
        position,
    }
}

fn random_bytes(random: &mut StdRng, count: usize) -> Bytes {
    let mut bytes = vec![0; count];
    random.fill_bytes(&mut bytes);
    bytes.into()
}

async fn fill(folder: &Path, sessions: u64, state_bytes: usize) {
    let storage = start(folder, Durability::Relaxed);
    let mut random = StdRng::seed_from_u64(1);
    let before = Instant::now();
    for at in storage.stats().sessions..sessions {
        let network = random_bytes(&mut random, state_bytes);
        let record = SessionRecord {
            key: key(at),
            identity: identity(),
            begin: state(0, &network),
            end: state(200, &network),
            last_call: LastCall {
                tokens: Some((0..200).collect()),
                parameters: Some(ParametersDigest([1; 32])),
            },
            created_unix_ms: 0,
            last_used_ms: 0,
        };
        let import = |record| ImportRequest {
            record,
            owner_limit: None,
        };
        while storage.import(import(record.clone())).await.is_err() {
            // The disk is slower than this loop.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if at % 100_000 == 99_999 {
            println!("{} sessions, {} MB resident", at + 1, resident_mb());
        }
    }
    storage.shutdown().await.unwrap();
    println!(
        "filled in {:.0} s, {} MB on disk, {} MB resident",
        before.elapsed().as_secs_f64(),
        folder_mb(folder),
        resident_mb()
    );
}

async fn open(folder: &Path, sessions: u64) {
    let storage = start(folder, Durability::Committed);
    let mut random = StdRng::seed_from_u64(2);
    let mut times = Vec::new();
    for _ in 0..1_000 {
        let request = request(random.random_range(0..sessions));
        let before = Instant::now();
        let opened = storage.open(request).await.unwrap();
        times.push(before.elapsed());
        drop(opened);
    }
    report("open a cold session", &mut times);
    println!("{} MB resident", resident_mb());
    storage.shutdown().await.unwrap();
}

fn request(at: u64) -> OpenRequest {
    OpenRequest {
        key: key(at),
        expected_position: None,
        create: Some(identity()),
        owner_limit: None,
    }
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() - 1) as f64 * share;
        times[index as usize].as_secs_f64() * 1e3
    };
    println!(
        "{what}: p50 {:.2} ms, p99 {:.2} ms, maximum {:.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

async fn commit(folder: &Path, sessions: u64) {
    let storage = start(folder, Durability::Committed);
    load("committed", &storage, sessions, Duration::ZERO, 8).await;
    // What two cores of float32 generation, and of int8, can commit.
    let slow = Duration::from_millis(320);
    load("committed, 200/s", &storage, sessions, slow, 20).await;
    let fast = Duration::from_millis(60);
    load("committed, 1,000/s", &storage, sessions, fast, 20).await;
    storage.shutdown().await.unwrap();
    drop(storage);
    let storage = start(folder, Durability::Relaxed);
    load("relaxed", &storage, sessions, Duration::ZERO, 8).await;
    load("relaxed, 1,000/s", &storage, sessions, fast, 8).await;
    storage.shutdown().await.unwrap();
    let storage: Arc<dyn SessionStorage> = Arc::new(MemorySessions::new(SessionLimits::default()));
    load("memory", &storage, sessions, Duration::ZERO, 3).await;
    load("memory, 1,000/s", &storage, sessions, fast, 3).await;
}

async fn kill(folder: &Path, sessions: u64) {
    let storage = start(folder, Durability::Committed);
    load("committed", &storage, sessions, Duration::ZERO, 2).await;
    std::process::abort();
}

/// Commits from many callers, each with a pause around `pause` between two.
async fn load(
    what: &str,
    storage: &Arc<dyn SessionStorage>,
    sessions: u64,
    pause: Duration,
    seconds: u64,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let commits = Arc::new(AtomicU64::new(0));
    let mut callers = Vec::new();
    for caller in 0..CALLERS {
        let (storage, stop) = (Arc::clone(storage), Arc::clone(&stop));
        let commits = Arc::clone(&commits);
        callers.push(tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(caller as u64);
            // Two states of 5.9 KB: a record of 12 KB.
            let network = random_bytes(&mut random, 5_900);
            let mut times = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                if !pause.is_zero() {
                    tokio::time::sleep(pause.mul_f64(random.random_range(0.0..2.0))).await;
                }
                let Ok(opened) = storage
                    .open(request(random.random_range(0..sessions)))
                    .await
                else {
                    continue;
                };
                let begin = opened.start.map_or(state(0, &network), |start| start.state);
                let mut end = network.to_vec();
                end[0] = end[0].wrapping_add(u8::try_from(times.len() % 255).unwrap());
                let commit = SessionCommit {
                    identity: identity(),
                    end: state(begin.position + 200, &end.into()),
                    begin,
                    last_call: LastCall {
                        tokens: Some((0..200).collect()),
                        parameters: Some(ParametersDigest([1; 32])),
                    },
                    cut_off: false,
                };
                let before = Instant::now();
                if storage.commit(opened.lease, commit).await.is_ok() {
                    times.push(before.elapsed());
                    commits.fetch_add(1, Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
            }
            times
        }));
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for caller in callers {
        times.extend(caller.await.unwrap());
    }
    let rate = commits.load(Ordering::Relaxed) / seconds;
    report(&format!("{what}: {rate} commits/s"), &mut times);
    println!("{} MB resident", resident_mb());
}
