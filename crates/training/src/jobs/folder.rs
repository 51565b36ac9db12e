//! The folder of all trainings: reads it at startup and names new trainings.
//! `job` defines the folder of one training.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use charlstm_store::atomic_file;

use crate::events::{Finished, State};
use crate::job::{Job, Resumability};
use crate::models::Models;

/// First characters of the name of a folder whose training was deleted.
const REMOVED: &str = ".removed-";

/// Removes the folder of a training from those that are read, in one step;
/// returns its new name, for its files to be deleted.
pub(super) fn remove(trainings: &Path, folder: &Path, id: &str) -> io::Result<PathBuf> {
    let removed = trainings.join(format!("{REMOVED}{id}"));
    atomic_file::rename(folder, &removed)?;
    Ok(removed)
}

/// Reads all trainings of a folder. A training that had not ended is
/// interrupted now, unless its model was published.
pub(super) fn read_all(
    folder: &Path,
    models: &dyn Models,
) -> io::Result<BTreeMap<String, Arc<Job>>> {
    let mut jobs = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".new-") || name.starts_with(REMOVED) {
            // It was never complete and was not reported to any client, or it
            // was deleted.
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(%error, path = %path.display(), "an incomplete or deleted training cannot be removed");
            }
            continue;
        }
        match Job::open(&path) {
            Ok(job) if job.id() == name => {
                if !job.summary().state.has_ended() {
                    end(&job, models);
                }
                job.delete_spent_files();
                jobs.insert(job.id().to_owned(), Arc::new(job));
            }
            Ok(job) => {
                tracing::error!(path = %path.display(), id = job.id(), "the folder of a training has another name than the training; it is ignored");
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "a training cannot be read; it is ignored");
            }
        }
    }
    Ok(jobs)
}

/// Reports the end of a training that was running or waiting when the server
/// stopped.
fn end(job: &Job, models: &dyn Models) {
    let metadata = job.metadata();
    match models.published_by(&metadata.spec.model, &metadata.id) {
        Ok(Some(published)) => {
            return job.finish(Finished {
                state: State::Succeeded,
                version: published.version,
                train_loss: published.train_loss,
                validation_loss: published.validation_loss,
                message: String::new(),
                best_epoch: Some(published.epoch),
            });
        }
        Ok(None) => {}
        Err(error) => {
            tracing::error!(%error, id = job.id(), "whether a training has published its model is unknown");
        }
    }
    match job.resumability() {
        Resumability::Impossible => {
            let text = format!("the server stopped; {}", Resumability::Impossible.message());
            job.finish_without_model(State::Failed, text);
        }
        resumability => job.interrupt(resumability),
    }
}

/// Returns an id that sorts by time and cannot be guessed.
pub(super) fn new_id(unix_ms: u64) -> String {
    format!("t-{unix_ms:011x}{:08x}", rand::random::<u32>())
}
