//! The handle that services hold: it checks a call, opens its session, loads
//! its model, and hands it to a worker.

mod model_ref;
mod prompt_lookup;
mod sessions;
mod stats;
mod text_scorer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use charlstm_model::ModelId;
use charlstm_model::decode_step::HiddenState;
use charlstm_model::sampler::{Draws, RandomState};
use charlstm_repository::LoadedModel;
use charlstm_store::session::{
    MAX_POSITION, MAX_UNFED_CHARS, OpenRequest, OpenedSession, RecordError, SealError,
    SessionError, SessionIdentity, SessionKey, SessionLease, SessionSnapshot, SessionState,
    SessionStorage,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::model_ref::{EncodedText, check_model_of, encode, identity_of, model_id, names_model};
pub use self::stats::EngineStats;
pub use self::text_scorer::{PartScore, TextScorer};
use crate::admission::{Admission, Permit};
use crate::caller::CallerId;
use crate::committer::Committer;
use crate::error::GenerateError;
use crate::event::Started;
use crate::inbox::{Command, Inbox};
use crate::job::{Job, JobParts};
use crate::model_source::ModelSource;
use crate::progress::{ANCHOR_CHARS, Destination, OpenSession, Progress};
use crate::prompt_cache::{CachedPrompt, PromptCache};
use crate::request::{GenerateCall, SessionSource};
use crate::stop_matcher::StopMatcher;
use crate::stream::GenerationStream;
use crate::text_buffer::{ReaderSession, TextBuffer, TextBufferParts};
use crate::worker::{Worker, WorkerConfig, WorkerGuard};
use crate::worker_load::WorkerLoad;

/// Limits of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Number of threads that compute.
    pub workers: usize,
    /// Maximum number of generations in the batch, over all workers.
    pub max_batch: usize,
    /// Maximum number of generations that wait for a slot.
    pub max_queue: usize,
    /// Maximum number of scores that run or wait.
    pub max_scores: usize,
    /// Maximum number of characters, of all prompts and scored texts together,
    /// that were accepted and not fed to the network yet: 4 bytes each.
    pub max_queued_chars: usize,
    /// Maximum number of characters of one text that were generated and not
    /// read. A job with more is parked until its reader has caught up.
    pub max_unread_chars: usize,
    /// A generation ends if its reader takes nothing for this time.
    pub reader_timeout: Duration,
    /// Maximum length of a prompt, in characters.
    pub max_prompt_chars: usize,
    /// Memory for states after prompts, so that a prompt with the same
    /// beginning is not fed again; 0 keeps none.
    pub prompt_cache_bytes: u64,
    /// Time that readers have, at shutdown, to take the text that is there.
    pub stop_grace: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            // At 256 rows a product runs near the peak of the processor; more
            // only make each generation slower.
            max_batch: 256,
            max_queue: 1024,
            max_scores: 64,
            // 64 MB.
            max_queued_chars: 16_000_000,
            // A reader that is some seconds behind is not parked; a thousand
            // of them take a few megabytes.
            max_unread_chars: 4096,
            reader_timeout: Duration::from_secs(60),
            // Some minutes of prefill, and 4 MB.
            max_prompt_chars: 1_000_000,
            // Some thousand prompts of a network of 2 layers of 512.
            prompt_cache_bytes: 64_000_000,
            stop_grace: Duration::from_secs(2),
        }
    }
}

/// Maximum time that a call waits for the end of one whose reader has left:
/// many decode steps and a sync of the disk, and too short to be noticed.
const LEAVING_WAIT: Duration = Duration::from_secs(2);

/// Maximum number of unread characters of a call in a session. A session that
/// is committed at its reader keeps the characters since the last saved state,
/// and stop strings may hold back some more.
const MAX_SESSION_UNREAD_CHARS: usize = MAX_UNFED_CHARS / 2 - ANCHOR_CHARS;

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

/// A call that was checked, with its model and session.
struct AcceptedCall {
    call: GenerateCall,
    permit: Permit,
    prompt_permit: Permit,
    prompt: EncodedText,
    /// What is known of the prompt, if it starts from the zero state.
    cached: Option<CachedPrompt>,
    start: CallStart,
}

/// What a call continues.
struct CallStart {
    model: Arc<LoadedModel>,
    identity: SessionIdentity,
    /// The lease of a stored session.
    lease: Option<SessionLease>,
    /// The state of an existing session.
    state: Option<SessionState>,
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

    /// Loads the model of a call that continues no session.
    async fn open_nothing(&self, call: &GenerateCall) -> Result<CallStart, GenerateError> {
        let model = self.load_reference(&call.model, call.precision).await?;
        Ok(CallStart {
            identity: identity_of(&model),
            model,
            lease: None,
            state: None,
        })
    }

    /// Opens the session of a call, and loads its model.
    async fn open_session(
        &self,
        key: &SessionKey,
        call: &GenerateCall,
    ) -> Result<CallStart, GenerateError> {
        // Whether the session exists decides which model the call needs.
        let opened = match self.lease(key, call.expected_position, None, None).await {
            Err(SessionError::Unknown) => {
                let new = self.open_nothing(call).await?;
                let create = Some(new.identity.clone());
                let opened = self
                    .lease(key, call.expected_position, create, call.owner_limit)
                    .await;
                match opened.map_err(about(key))? {
                    OpenedSession { lease, start: None } => {
                        let lease = Some(lease);
                        return Ok(CallStart { lease, ..new });
                    }
                    // Another call has created it in the meantime.
                    opened => opened,
                }
            }
            opened => opened.map_err(about(key))?,
        };
        let Some(start) = opened.start else {
            let text = "the storage created a session unasked".to_owned();
            return Err(GenerateError::Internal(text));
        };
        let identity = start.identity;
        check_model_of(&key.id, &identity, &call.model)?;
        if let Some(requested) = call.precision
            && requested != identity.precision
        {
            return Err(GenerateError::OtherPrecision {
                id: key.id.clone(),
                precision: identity.precision,
                requested,
            });
        }
        Ok(CallStart {
            model: self.load_model_of(&key.id, &identity).await?,
            identity,
            lease: Some(opened.lease),
            state: Some(start.state),
        })
    }

    /// Checks a snapshot, and loads its model.
    async fn open_snapshot(
        &self,
        snapshot: &SessionSnapshot,
        call: &GenerateCall,
    ) -> Result<CallStart, GenerateError> {
        let position = snapshot.state.position;
        if let Some(expected) = call.expected_position
            && expected != position
        {
            return Err(GenerateError::SnapshotPosition { expected, position });
        }
        let identity = snapshot.identity.clone();
        if !names_model(&identity, &call.model) {
            return Err(SealError::OtherModel.into());
        }
        let precision = identity.precision;
        let model = self
            .load(&model_id(&identity.model), Some(precision))
            .await?;
        snapshot.check(&model.digest, call.precision.unwrap_or(precision))?;
        if !sessions::fits(&snapshot.state, &model) {
            let text = "the state does not fit the model that it names";
            return Err(SealError::from(RecordError::Content(text)).into());
        }
        Ok(CallStart {
            model,
            identity,
            lease: None,
            state: Some(snapshot.state.clone()),
        })
    }

    /// Takes the lease of a session. Waits a little for a call whose reader
    /// has left, so that a client that repeats a dropped call does not get
    /// ABORTED because of its own earlier call.
    async fn lease(
        &self,
        key: &SessionKey,
        expected_position: Option<u64>,
        create: Option<SessionIdentity>,
        owner_limit: Option<u64>,
    ) -> Result<OpenedSession, SessionError> {
        let until = tokio::time::Instant::now() + LEAVING_WAIT;
        loop {
            let request = OpenRequest {
                key: key.clone(),
                expected_position,
                create: create.clone(),
                owner_limit,
            };
            let busy = match self.storage().open(request).await {
                Err(busy @ SessionError::Busy { leaving: true, .. }) => busy,
                other => return other,
            };
            let released = self.storage().released(key);
            if tokio::time::timeout_at(until, released).await.is_err() {
                return Err(busy);
            }
        }
    }

    fn submit(&self, accepted: AcceptedCall) -> Result<GenerationStream, GenerateError> {
        let AcceptedCall {
            call,
            permit,
            mut prompt_permit,
            prompt,
            cached,
            start,
        } = accepted;
        let EncodedText {
            tokens: prompt,
            unknown_chars,
            hash,
        } = prompt;
        let CallStart {
            model,
            identity,
            lease,
            state,
        } = start;
        let begin = begin_state(state, call.seed);
        let mut state = network_state_of(&begin, &model)?;
        let prompt_chars = prompt.len() as u64;
        if begin.position + prompt_chars + call.max_chars > MAX_POSITION {
            return Err(GenerateError::PositionLimit {
                position: begin.position,
                max: MAX_POSITION,
            });
        }
        let unfed = begin.unfed.len();
        prompt_permit.merge(self.reserve_chars(&call.caller, unfed)?);
        let feed: Vec<u32> = begin.unfed.iter().chain(prompt.iter().copied()).collect();
        if feed.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let mut fed = 0;
        let recorder = cached.map(|CachedPrompt { found, rest }| {
            if let Some((chars, found)) = found {
                (fed, state) = (chars, (*found).clone());
            }
            rest
        });
        let worker = self.least_loaded();
        let id = call.session.key().map(|key| key.id.clone());
        let reader_session = lease.as_ref().map(|lease| ReaderSession {
            id: lease.key().id.clone(),
            lease: lease.handle(),
        });
        let destination = match (lease, call.snapshot_for) {
            (Some(lease), _) => Some(Destination::Storage(lease)),
            (None, principal) => principal.map(Destination::Client),
        };
        let max_unread = self.shared.config.max_unread_chars;
        let buffer = TextBuffer::new(TextBufferParts {
            started: Started {
                session: id,
                model: model.id.clone(),
                precision: identity.precision,
                seed: begin.random.seed,
                position: begin.position,
                unknown_chars,
            },
            prompt_chars,
            capacity_chars: match destination {
                Some(_) => max_unread.min(MAX_SESSION_UNREAD_CHARS),
                None => max_unread,
            },
            session: reader_session,
            inbox: Arc::clone(&worker.inbox),
            committer: Arc::clone(&self.shared.committer),
            permit,
        });
        let stream = GenerationStream::new(Arc::clone(&buffer));
        let random = begin.random;
        let progress = destination.map(|destination| {
            let session = OpenSession {
                destination,
                identity,
                begin,
            };
            Progress::new(session, hash.digest(random.seed), &prompt)
        });
        let job = Job::new(JobParts {
            caller: call.caller,
            buffer,
            settings: call.settings,
            draws: Draws::at(random),
            stops: stop_matcher(&model, &call.stop),
            logprobs: call.logprobs,
            max_chars: call.max_chars,
            deadline: call.deadline,
            state,
            load: worker.load.add(feed.len() - fed),
            feed,
            unfed,
            fed,
            recorder,
            progress,
            model,
            prompt_permit,
        });
        worker
            .inbox
            .put(Command::Generate(Box::new(job)))
            .map_err(|_| GenerateError::Stopping)?;
        Ok(stream)
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

fn about(key: &SessionKey) -> impl FnOnce(SessionError) -> GenerateError {
    let id = key.id.clone();
    move |error| GenerateError::Session { id, error }
}

/// Where a call begins. It continues the session's random sequence if it names
/// no seed or the seed of that sequence, which is what a repeat of a call
/// does; otherwise it starts the sequence of its seed.
fn begin_state(start: Option<SessionState>, seed: Option<u64>) -> SessionState {
    match (start, seed) {
        (Some(state), Some(seed)) if seed != state.random.seed => SessionState {
            random: RandomState::seeded(seed),
            ..state
        },
        (Some(state), _) => state,
        (None, seed) => SessionState::origin(seed.unwrap_or_else(draw_seed)),
    }
}

/// Draws a seed of 53 bits: clients that read numbers as JavaScript does can
/// send it back.
fn draw_seed() -> u64 {
    rand::random::<u64>() >> 11
}

/// The state of the network at `state`. The digest of its session's model
/// matches, so a mismatch is an error inside.
fn network_state_of(
    state: &SessionState,
    model: &LoadedModel,
) -> Result<HiddenState, GenerateError> {
    sessions::hidden_state(state, model).ok_or_else(|| {
        GenerateError::Internal("the state of a session does not fit its model".to_owned())
    })
}

/// A matcher for the stop strings that the model can write; others never
/// occur.
fn stop_matcher(model: &LoadedModel, strings: &[String]) -> StopMatcher {
    let encoded = strings.iter().filter(|string| !string.is_empty());
    StopMatcher::new(
        encoded
            .filter_map(|string| model.vocabulary.encode(string).ok())
            .collect(),
    )
}
