//! The handle that services hold: it starts and stops the workers, admits a
//! call, opens what it continues, and hands it to a worker.

mod config;
mod model_ref;
mod opening;
mod prompt_lookup;
mod sessions;
mod stats;
mod submission;
mod text_scorer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use charlstm_model::ModelId;
use charlstm_store::session::{MAX_UNFED_CHARS, SessionError, SessionStorage};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::config::EngineConfig;
use self::model_ref::encode;
pub use self::stats::EngineStats;
use self::submission::AcceptedCall;
pub use self::text_scorer::{PartScore, TextScorer};
use crate::admission::{Admission, Permit};
use crate::caller::CallerId;
use crate::committer::Committer;
use crate::error::GenerateError;
use crate::inbox::{Command, Inbox};
use crate::model_source::ModelSource;
use crate::prompt_cache::PromptCache;
use crate::request::{GenerateCall, SessionSource};
use crate::stream::GenerationStream;
use crate::worker::{Worker, WorkerConfig, WorkerGuard};
use crate::worker_load::WorkerLoad;

/// A handle of the engine. Clones share it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    config: EngineConfig,
    models: Arc<dyn ModelSource>,
    prompt_cache: Arc<PromptCache>,
    committer: Arc<Committer>,
    generations: Arc<Admission>,
    scores: Arc<Admission>,
    queued_chars: Arc<Admission>,
    workers: Vec<WorkerHandle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Has a token of every thread that is alive.
    alive: TaskTracker,
    is_stopping: AtomicBool,
    failed: CancellationToken,
}

struct WorkerHandle {
    inbox: Arc<Inbox>,
    load: Arc<WorkerLoad>,
}

impl Engine {
    /// Starts the workers. Commits run on the tokio runtime of the caller.
    ///
    /// # Errors
    /// A thread cannot be started.
    ///
    /// # Panics
    /// If called outside of a tokio runtime.
    pub fn start(
        config: EngineConfig,
        models: Arc<dyn ModelSource>,
        storage: Arc<dyn SessionStorage>,
    ) -> std::io::Result<Self> {
        let committer = Committer::new(storage, Handle::current());
        let count = config.workers.clamp(1, config.max_batch.max(1));
        let worker_config = WorkerConfig {
            slots: config.max_batch.max(1).div_ceil(count),
            reader_timeout: config.reader_timeout,
            stop_grace: config.stop_grace,
        };
        // The longest call must fit when nothing else is queued.
        let longest_call = config.max_prompt_chars + MAX_UNFED_CHARS;
        let queued_chars = config.max_queued_chars.max(longest_call);
        let mut shared = Shared {
            generations: Admission::new(config.max_batch + config.max_queue),
            scores: Admission::new(config.max_scores),
            queued_chars: Admission::new(queued_chars),
            prompt_cache: PromptCache::new(config.prompt_cache_bytes),
            config,
            models,
            committer,
            workers: Vec::with_capacity(count),
            threads: Mutex::default(),
            alive: TaskTracker::new(),
            is_stopping: AtomicBool::new(false),
            failed: CancellationToken::new(),
        };
        let mut threads = Vec::with_capacity(count);
        let loads: Vec<_> = (0..count)
            .map(|_| Arc::new(WorkerLoad::default()))
            .collect();
        for (number, load) in loads.iter().enumerate() {
            let inbox = Arc::new(Inbox::default());
            let others = loads.iter().filter(|other| !Arc::ptr_eq(other, load));
            let guard = WorkerGuard {
                inbox: Arc::clone(&inbox),
                failed: shared.failed.clone(),
                _alive: shared.alive.token(),
            };
            let worker = Worker::new(
                Arc::clone(&inbox),
                Arc::clone(load),
                others.cloned().collect(),
                worker_config,
            );
            let thread = std::thread::Builder::new()
                .name(format!("generate-{number}"))
                .spawn(move || {
                    // Dropped after the worker, also if it panics.
                    let _guard = guard;
                    worker.run();
                })?;
            let load = Arc::clone(load);
            shared.workers.push(WorkerHandle { inbox, load });
            threads.push(thread);
        }
        shared.threads = Mutex::new(threads);
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Starts to generate a text. Returns as soon as the call is in the queue
    /// of a worker. If the future is dropped before, nothing has happened.
    ///
    /// # Errors
    /// All but `Stalled`. `Overloaded` and, in a session, `Unavailable` are
    /// returned before anything is generated.
    pub async fn generate(
        &self,
        mut call: GenerateCall,
    ) -> Result<GenerationStream, GenerateError> {
        self.check_running()?;
        let permit = admit(&self.shared.generations, &call.caller, 1)?;
        let max_chars = self.shared.config.max_prompt_chars;
        let prompt_permit =
            self.reserve_text(&call.caller, call.prompt.chars().count(), max_chars)?;
        let start = match &call.session {
            SessionSource::Stored(key) => self.open_session(key, &call).await?,
            SessionSource::Snapshot(snapshot) => self.open_snapshot(snapshot, &call).await?,
            SessionSource::None => self.open_nothing(&call).await?,
        };
        let text = std::mem::take(&mut call.prompt);
        let mut prompt = encode(&start.model, text, call.unknown, &call.settings).await?;
        let cached = self
            .look_up_prompt(&call.owner, &start, &mut prompt)
            .await?;
        self.submit(AcceptedCall {
            call,
            permit,
            prompt_permit,
            prompt,
            cached,
            start,
        })
    }

    /// Ends the generations with a model that is deleted, and drops its
    /// weights. Its sessions stay, and calls in them report that their model
    /// is gone.
    pub fn drop_model(&self, id: &ModelId) {
        for worker in &self.shared.workers {
            // A worker that has stopped has no batch any more.
            let _ = worker.inbox.put(Command::DropModel(id.clone()));
        }
    }

    /// Completes when the engine has failed: a worker ended unexpectedly. Its
    /// calls have ended with errors; the caller is to shut down.
    pub async fn failed(&self) {
        self.shared.failed.cancelled().await;
    }

    /// Stops the engine: ends all generations, commits all sessions, and shuts
    /// the session storage down, so that every change that was acknowledged is
    /// durable. Takes a little more than the grace time of the configuration,
    /// plus the time of the last commits. A second call does the same again
    /// and finds nothing to do.
    ///
    /// # Errors
    /// Something that was accepted could not be made durable.
    pub async fn stop(&self) -> Result<(), SessionError> {
        self.shared.is_stopping.store(true, Ordering::Release);
        for worker in &self.shared.workers {
            worker.inbox.stop();
        }
        self.shared.alive.close();
        self.shared.alive.wait().await;
        for thread in std::mem::take(&mut *self.threads()) {
            // The thread is over but for its last instructions. If it
            // panicked, that was logged.
            let _ = thread.join();
        }
        // Every call has handed its commit over by now.
        self.shared.committer.wait_until_idle().await;
        self.storage().shutdown().await
    }

    /// Lets a worker panic outside of a turn.
    #[cfg(test)]
    pub(crate) fn crash_worker(&self) {
        let _ = self.shared.workers[0].inbox.put(Command::Crash);
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        let threads = self.shared.threads.lock();
        threads.unwrap_or_else(PoisonError::into_inner)
    }

    fn storage(&self) -> &dyn SessionStorage {
        self.shared.committer.storage()
    }

    fn check_running(&self) -> Result<(), GenerateError> {
        if self.shared.is_stopping.load(Ordering::Acquire) || self.shared.failed.is_cancelled() {
            return Err(GenerateError::Stopping);
        }
        Ok(())
    }

    /// Reserves a share of the budget of queued characters for a text of at
    /// most `max` characters.
    fn reserve_text(
        &self,
        caller: &CallerId,
        chars: usize,
        max: usize,
    ) -> Result<Permit, GenerateError> {
        if chars > max {
            return Err(GenerateError::TextTooLong { chars, max });
        }
        self.reserve_chars(caller, chars)
    }

    fn reserve_chars(&self, caller: &CallerId, chars: usize) -> Result<Permit, GenerateError> {
        admit(&self.shared.queued_chars, caller, chars)
    }

    fn least_loaded(&self) -> &WorkerHandle {
        self.shared
            .workers
            .iter()
            .min_by_key(|worker| worker.load.weight())
            .expect("an engine has at least one worker")
    }
}

impl Drop for Shared {
    /// Stops the threads of an engine that nobody holds any more.
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.inbox.stop();
        }
    }
}

/// Does some work; on a thread that may block unless it is short.
async fn compute<T: Send + 'static>(
    is_short: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GenerateError> {
    if is_short {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| GenerateError::Internal(error.to_string()))
}

fn admit(
    admission: &Arc<Admission>,
    caller: &CallerId,
    amount: usize,
) -> Result<Permit, GenerateError> {
    admission
        .admit(caller, amount)
        .map_err(|retry_after| GenerateError::Overloaded { retry_after })
}
