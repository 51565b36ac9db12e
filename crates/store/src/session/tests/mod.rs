//! The rules of session storage, run against the backends of this crate.
#![allow(clippy::unwrap_used)]

mod format;

use std::sync::Arc;

use super::testing::fixture::{Fixture, StartFuture};
use super::{MemorySessions, RunningClock, SessionLimits};
use crate::session::embedded::tests::{start_in_folder, start_relaxed, start_simulated};
use crate::session_storage_rules;

session_storage_rules!(in_memory, start_in_memory, if on_every_machine);
session_storage_rules!(simulated_disk, start_simulated, if on_every_machine);
session_storage_rules!(relaxed, start_relaxed, if on_every_machine);
session_storage_rules!(folder, start_in_folder, if on_every_machine);

fn on_every_machine() -> bool {
    true
}

fn start_in_memory(limits: SessionLimits) -> StartFuture {
    let clock = Arc::new(RunningClock::manual());
    let storage = MemorySessions::with_clock(limits, Arc::clone(&clock));
    Fixture::new(Arc::new(storage), clock).into()
}
