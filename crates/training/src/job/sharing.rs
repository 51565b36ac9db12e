//! A training that replicas share: who runs it, and the copies of its files in
//! the folder of the replica that does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::metadata::{JobMetadata, METADATA};
use super::tokens::TOKENS;
use super::{Job, NewJob, StopRequest};
use crate::claimed_run::ClaimedRun;
use crate::events::EventKind;
use crate::history::History;

/// What a replica knows of a shared training.
#[derive(Default)]
pub(super) struct Sharing {
    /// Set while this replica runs it.
    pub(super) run: Option<Arc<ClaimedRun>>,
    /// Steps taken at its newest checkpoint.
    pub(super) checkpoint_step: Option<u64>,
}

impl Job {
    /// A training that replicas share, whose events are still to be read. Its
    /// folder holds copies of its files while this replica runs it.
    pub(crate) fn shared(metadata: &[u8], folder: PathBuf) -> io::Result<Self> {
        let metadata = JobMetadata::parse(metadata)?;
        let sharing = Some(Mutex::default());
        Ok(Self::new(metadata, folder, History::shared(), sharing))
    }

    pub(super) fn sharing(&self) -> Option<MutexGuard<'_, Sharing>> {
        let sharing = self.sharing.as_ref()?;
        Some(sharing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the claim of this replica on a shared training, if it has one.
    pub(crate) fn run(&self) -> Option<Arc<ClaimedRun>> {
        self.sharing()?.run.clone()
    }

    /// From now on, this replica runs the shared training. All its events must
    /// have been read.
    pub(crate) fn attach(&self, run: Arc<ClaimedRun>) {
        if let Some(mut sharing) = self.sharing() {
            self.history.attach(Arc::<ClaimedRun>::clone(&run));
            sharing.run = Some(run);
        }
        self.request_stop(StopRequest::Nothing);
    }

    /// From now on, this replica does not run the shared training.
    pub(crate) fn detach(&self) {
        if let Some(mut sharing) = self.sharing() {
            sharing.run = None;
            self.history.detach();
        }
    }

    pub(crate) fn set_checkpoint_step(&self, step: Option<u64>) {
        if let Some(mut sharing) = self.sharing() {
            sharing.checkpoint_step = step;
        }
    }

    /// Returns the steps taken at the newest checkpoint of a shared training.
    pub(crate) fn checkpoint_step(&self) -> Option<u64> {
        self.sharing()?.checkpoint_step
    }

    /// Returns the path of the file of token ids.
    pub(crate) fn tokens_path(&self) -> PathBuf {
        self.folder.join(TOKENS)
    }
}

impl NewJob<'_> {
    /// Writes metadata and token ids to a folder, for a training that replicas
    /// share. Returns the text of the metadata, the first event, and the path of
    /// the token ids.
    pub(crate) fn write_shared(
        &self,
        folder: &Path,
        device: String,
    ) -> io::Result<(String, EventKind, PathBuf)> {
        let metadata = self.write(folder)?;
        let accepted = self.accepted(&metadata, device);
        let text = fs::read_to_string(folder.join(METADATA))?;
        Ok((text, EventKind::Accepted(accepted), folder.join(TOKENS)))
    }
}
