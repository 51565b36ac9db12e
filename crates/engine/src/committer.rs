//! The one place where calls change sessions: a task per commit, owned by the
//! engine, which outlives the stream of the call.

use std::sync::Arc;
use std::time::Instant;

use charlstm_store::session::{
    CommitOutcome, SessionCommit, SessionError, SessionLease, SessionStorage,
};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::commit_times::{CommitTimer, CommitTimes};
use crate::text_buffer::{CommitError, TextBuffer};

/// Commits the sessions of ended calls. The number of pending commits is
/// bounded by the admission: a call keeps its permit until it is committed.
pub(crate) struct Committer {
    storage: Arc<dyn SessionStorage>,
    runtime: Handle,
    tasks: TaskTracker,
    timer: Arc<CommitTimer>,
}

impl Committer {
    /// A committer whose tasks run on `runtime`.
    pub(crate) fn new(storage: Arc<dyn SessionStorage>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            storage,
            runtime,
            tasks: TaskTracker::new(),
            timer: Arc::new(CommitTimer::new()),
        })
    }

    /// The storage that calls open their sessions in.
    pub(crate) fn storage(&self) -> &dyn SessionStorage {
        &*self.storage
    }

    /// Starts to commit the session of an ended call. The outcome releases the
    /// last event of `buffer`. Never blocks; may be called on any thread.
    pub(crate) fn submit(
        &self,
        lease: SessionLease,
        commit: Box<SessionCommit>,
        buffer: Arc<TextBuffer>,
    ) {
        let storage = Arc::clone(&self.storage);
        let outcome = OutcomeSender(Some(buffer));
        let timer = Arc::clone(&self.timer);
        let commit = async move {
            let session = lease.key().clone();
            let since = Instant::now();
            let result = storage.commit(lease, *commit).await;
            timer.record(&session, since.elapsed());
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

    /// How long commits have taken.
    pub(crate) fn times(&self) -> CommitTimes {
        self.timer.times()
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
