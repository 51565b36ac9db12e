//! What only a store on disk can get wrong: power cuts, errors of the disk,
//! damaged files, files of other versions.
#![allow(clippy::unwrap_used)]

mod damage;
mod disk_errors;
mod power_cuts;
mod simulated_disk;
mod version_0_1;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{EmbeddedSessions, EmbeddedSettings, OpenError, Tuning};
use crate::session::testing::fixture::{Fixture, StartFuture};
use crate::session::{Durability, RunningClock, SessionLimits};
use simulated_disk::SimulatedDisk;

/// Small numbers, so that little work moves logs into the database.
pub(crate) fn small(durability: Durability) -> Tuning {
    Tuning {
        durability,
        log_bytes: 8 << 10,
        log_age: Duration::from_millis(20),
        reserve_bytes: 16 << 10,
        max_pending_bytes: 1 << 20,
        page_cache_bytes: 1 << 20,
        retry_after: Duration::from_millis(2),
        tick: Duration::from_millis(5),
    }
}

/// A store on a simulated disk with a clock that stands still.
fn open_with(
    disk: &SimulatedDisk,
    limits: SessionLimits,
    tuning: Tuning,
) -> Result<Fixture, OpenError> {
    let clock = Arc::new(RunningClock::manual());
    let settings = EmbeddedSettings {
        limits,
        durability: tuning.durability,
        cache_bytes: 64 << 10,
    };
    let disk = Arc::new(disk.clone());
    let folder = Path::new("sessions");
    let sessions =
        EmbeddedSessions::open_on(disk, folder, settings, tuning, Some(Arc::clone(&clock)))?;
    Ok(Fixture::new(Arc::new(sessions), clock))
}

fn open(disk: &SimulatedDisk) -> Result<Fixture, OpenError> {
    let tuning = small(Durability::Committed);
    open_with(disk, SessionLimits::default(), tuning)
}

/// For the rules that all backends follow.
pub(crate) fn start_simulated(limits: SessionLimits) -> StartFuture {
    let tuning = small(Durability::Committed);
    open_with(&SimulatedDisk::new(1), limits, tuning)
        .unwrap()
        .into()
}

/// The same, relaxed.
pub(crate) fn start_relaxed(limits: SessionLimits) -> StartFuture {
    let tuning = small(Durability::Relaxed);
    open_with(&SimulatedDisk::new(1), limits, tuning)
        .unwrap()
        .into()
}

/// The same in a real folder, without a cache.
pub(crate) fn start_in_folder(limits: SessionLimits) -> StartFuture {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(RunningClock::manual());
    let settings = EmbeddedSettings {
        limits,
        durability: Durability::Committed,
        cache_bytes: 0,
    };
    let disk = Arc::new(super::Folder::open(folder.path()).unwrap());
    let tuning = small(Durability::Committed);
    let clock_too = Some(Arc::clone(&clock));
    let sessions =
        EmbeddedSessions::open_on(disk, folder.path(), settings, tuning, clock_too).unwrap();
    let fixture = Fixture::new(Arc::new(sessions), clock);
    fixture.keeping(folder).into()
}
