//! The trainings of a data folder, for a copy of them to a place that replicas
//! share.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use charlstm_store::session::Owner;

use super::events::{Event, EventKind};
use super::job::Job;

/// A training, to be copied.
#[derive(Debug)]
pub struct TrainingCopy {
    /// Its id.
    pub id: String,
    /// Who it belongs to.
    pub owner: Owner,
    /// Its metadata, as text.
    pub metadata: String,
    /// Its events. The last one is its end: a training that had not ended is
    /// interrupted.
    pub events: Vec<Event>,
    /// The file of token ids, if it is still needed.
    pub tokens: Option<PathBuf>,
    /// The newest checkpoint and the previous one.
    pub checkpoints: [Option<PathBuf>; 2],
    /// Steps taken at the newest sound checkpoint.
    pub checkpoint_step: Option<u64>,
}

/// Reads all trainings of a folder, which no server may use. A training that
/// cannot be read is logged, and its name is in the second list.
///
/// # Errors
/// The folder cannot be listed.
pub fn read_all(folder: &Path) -> io::Result<(Vec<TrainingCopy>, Vec<String>)> {
    let (mut trainings, mut unreadable) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((trainings, unreadable));
        }
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || !path.is_dir() {
            continue;
        }
        match read(&path) {
            Ok(training) => trainings.push(training),
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "a training cannot be read");
                unreadable.push(name.into_owned());
            }
        }
    }
    trainings.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((trainings, unreadable))
}

fn read(folder: &Path) -> io::Result<TrainingCopy> {
    let job = Job::open(folder)?;
    let mut events: Vec<Event> = job
        .history()
        .events()
        .iter()
        .map(|event| event.as_ref().clone())
        .collect();
    if !job.summary().state.has_ended() {
        events.push(Event {
            sequence: events.last().map_or(0, |last| last.sequence + 1),
            event: EventKind::Finished(job.interrupted(job.resumability())),
        });
    }
    let existing = |path: PathBuf| path.is_file().then_some(path);
    let checkpoints = job.checkpoints();
    // Completes a checkpoint that a crash has interrupted.
    let step = checkpoints.load().ok().map(|newest| newest.learner.step);
    Ok(TrainingCopy {
        id: job.id().to_owned(),
        owner: job.owner().clone(),
        metadata: job.metadata_text()?,
        events,
        tokens: existing(job.tokens_path()),
        checkpoints: checkpoints.paths().map(existing),
        checkpoint_step: step,
    })
}
