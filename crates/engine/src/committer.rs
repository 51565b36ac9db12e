//! The one place where calls change sessions: a task per commit, owned by the
//! engine, which outlives the stream of the call.

use std::sync::Arc;

use charlstm_model::decode_step::HiddenState;
use charlstm_store::session::{CommitOutcome, SessionError, SessionStorage};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::progress::{CommitPoint, Progress};
use crate::text_buffer::{CommitError, TextBuffer};

/// Commits the sessions of ended calls. The number of pending commits is
/// bounded by the admission: a call keeps its permit until it is committed.
pub(crate) struct Committer {
    storage: Arc<dyn SessionStorage>,
    runtime: Handle,
    tasks: TaskTracker,
}

/// An ended call whose session is to be committed.
pub(crate) struct PendingCommit {
    progress: Progress,
    point: CommitPoint,
    /// The state after the last generated character, if it is at hand.
    end_state: Option<HiddenState>,
    outcome: OutcomeSender,
}

impl PendingCommit {
    /// A commit at `point` whose outcome releases the last event of `buffer`.
    pub(crate) fn new(
        progress: Progress,
        point: CommitPoint,
        end_state: Option<HiddenState>,
        buffer: Arc<TextBuffer>,
    ) -> Self {
        Self {
            progress,
            point,
            end_state,
            outcome: OutcomeSender(Some(buffer)),
        }
    }
}

impl Committer {
    /// A committer whose tasks run on `runtime`.
    pub(crate) fn new(storage: Arc<dyn SessionStorage>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            storage,
            runtime,
            tasks: TaskTracker::new(),
        })
    }

    /// The storage that calls open their sessions in.
    pub(crate) fn storage(&self) -> &dyn SessionStorage {
        &*self.storage
    }

    /// Starts to commit an ended call. Never blocks; may be called on any
    /// thread.
    pub(crate) fn submit(&self, pending: PendingCommit) {
        let storage = Arc::clone(&self.storage);
        let commit = async move {
            let PendingCommit {
                progress,
                point,
                end_state,
                outcome,
            } = pending;
            let (lease, commit) = progress.into_commit(point, end_state);
            let session = lease.key().clone();
            let result = storage.commit(lease, commit).await;
            match &result {
                Ok(_) | Err(SessionError::Deleted) => {}
                Err(error) => {
                    tracing::error!(%session, %error, "a session could not be committed");
                }
            }
            outcome.send(result);
        };
        self.tasks.spawn_on(commit, &self.runtime);
    }

    /// Waits until all commits have ended. Commits that are submitted in the
    /// meantime are waited for as well.
    pub(crate) async fn wait_until_idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Reports the outcome of a commit to the buffer of its call, also if the task
/// panics or is dropped with its runtime: the reader must not wait for ever.
struct OutcomeSender(Option<Arc<TextBuffer>>);

impl OutcomeSender {
    fn send(mut self, result: Result<CommitOutcome, SessionError>) {
        if let Some(buffer) = self.0.take() {
            buffer.commit_ended(result.map_err(CommitError::Session));
        }
    }
}

impl Drop for OutcomeSender {
    fn drop(&mut self) {
        if let Some(buffer) = self.0.take() {
            buffer.commit_ended(Err(CommitError::Abandoned));
        }
    }
}
