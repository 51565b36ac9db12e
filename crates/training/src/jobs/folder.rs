//! The folder of all trainings: reading it when the server starts, naming what
//! is new. What is in the folder of one training is in `job`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::INTERRUPTED;
use crate::events::State;
use crate::job::Job;

/// Reads all trainings of a folder, and interrupts those that had not ended.
pub(super) fn read_all(folder: &Path) -> io::Result<BTreeMap<String, Arc<Job>>> {
    let mut jobs = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".new-") {
            // It was never whole, and nobody was reported of it.
            fs::remove_dir_all(&path)?;
            continue;
        }
        match Job::open(&path) {
            Ok(job) if job.id() == name => {
                if !job.summary().state.has_ended() {
                    job.end(State::Interrupted, INTERRUPTED);
                }
                job.let_go_of_spent_files();
                jobs.insert(job.id().to_owned(), Arc::new(job));
            }
            Ok(job) => {
                tracing::error!(path = %path.display(), id = job.id(), "a training lies in a folder of another name; it is left out");
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "a training cannot be read; it is left out");
            }
        }
    }
    Ok(jobs)
}

/// A name that sorts by time and is not guessed.
pub(super) fn new_id(unix_ms: u64) -> String {
    format!("t-{unix_ms:011x}{:08x}", rand::random::<u32>())
}

pub(super) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}
