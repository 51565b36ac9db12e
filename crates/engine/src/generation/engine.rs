//! The handle that services hold: it checks a call, opens its session, finds
//! its model, and hands it to a worker.

mod load;
mod model_ref;
mod session_calls;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::admission::{Admission, Load, Permit};
use super::error::GenerateError;
use super::inbox::{Command, Inbox};
use super::job::{Job, JobParts};
use super::models::{ModelSource, ModelSourceError};
use super::progress::Progress;
use super::request::{GenerateCall, ScoreCall, Scored, Started};
use super::score::ScoreJob;
use super::session_manager::{Opened, SessionGuard, SessionManager};
use super::stop::StopMatcher;
use super::stream::{GenerationStream, TextBuffer};
use super::worker::{Worker, WorkerSettings};
use crate::sessions::disk::Restored;
use crate::sessions::store::{SessionError, SessionLimits};
use crate::sessions::{ModelKey, SessionId, SessionState};
use charlstm_model::decode_step::HiddenState;
use charlstm_model::sampler::{Draws, RandomState};
use charlstm_repository::{LoadedModel, ModelId};
pub use load::EngineLoad;
use model_ref::{ModelRef, session_model};

/// How much the engine takes on.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Threads that compute.
    pub workers: usize,
    /// Texts in the batch, over all workers.
    pub max_batch: usize,
    /// Texts that wait for a place in it.
    pub max_queue: usize,
    /// Scores under way or waiting.
    pub max_scores: usize,
    /// Characters of one text that were made and not read. More park it.
    pub max_unread_chars: usize,
    /// A reader who reads nothing for so long is given up.
    pub stalled_reader: Duration,
    /// Longest prime, in characters.
    pub max_prime_chars: usize,
    /// On stopping, readers have so long to take what there is.
    pub stop_grace: Duration,
    /// How many sessions are kept.
    pub sessions: SessionLimits,
    /// Where sessions are kept over a restart; `None`: nowhere.
    pub folder: Option<PathBuf>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            // At 256 rows a product runs near the peak of the processor; more
            // only make each text slower.
            max_batch: 256,
            max_queue: 1024,
            max_scores: 64,
            // A reader some seconds behind is not parked; a thousand of them
            // hold a few megabytes.
            max_unread_chars: 4096,
            stalled_reader: Duration::from_secs(60),
            // Some minutes of priming, and 4 MB.
            max_prime_chars: 1_000_000,
            stop_grace: Duration::from_secs(2),
            sessions: SessionLimits::default(),
            folder: None,
        }
    }
}

/// When it is worth trying again after a refusal: at hundreds of characters a
/// second for each text, a place is free within about a second.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A call waits so long for the end of one whose reader has left: many
/// steps, and too short for anyone to notice.
const LEAVING_WAIT: Duration = Duration::from_secs(2);

/// A handle of the engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    config: EngineConfig,
    models: Arc<dyn ModelSource>,
    book: Arc<SessionManager>,
    texts: Arc<Admission>,
    scores: Arc<Admission>,
    workers: Vec<WorkerHandle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: AtomicBool,
}

struct WorkerHandle {
    inbox: Arc<Inbox>,
    load: Arc<Load>,
}

impl Engine {
    /// Takes the saved sessions back and starts the workers. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// The folder cannot be used, or a thread cannot be started.
    pub fn start(config: EngineConfig, models: Arc<dyn ModelSource>) -> std::io::Result<Self> {
        let (book, restored) = SessionManager::open(config.sessions, config.folder.as_deref())?;
        report(restored, config.folder.as_deref());
        let count = config.workers.clamp(1, config.max_batch.max(1));
        let settings = WorkerSettings {
            slots: config.max_batch.max(1).div_ceil(count),
            stalled_reader: config.stalled_reader,
            grace: config.stop_grace,
        };
        let mut workers = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let inbox = Arc::new(Inbox::default());
            let load = Arc::new(Load::default());
            let worker = Worker::new(
                Arc::clone(&inbox),
                Arc::clone(&load),
                Arc::clone(&book),
                settings,
            );
            let thread = std::thread::Builder::new()
                .name(format!("generate-{number}"))
                .spawn(move || worker.run())?;
            workers.push(WorkerHandle { inbox, load });
            threads.push(thread);
        }
        let shared = Shared {
            texts: Admission::new(config.max_batch + config.max_queue),
            scores: Admission::new(config.max_scores),
            config,
            models,
            book,
            workers,
            threads: Mutex::new(threads),
            stopping: AtomicBool::new(false),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Begins a text. Returns as soon as it is in the queue of a worker. When
    /// this future is dropped before, nothing has happened.
    ///
    /// # Errors
    /// All but `Stalled`; `Overloaded` comes at once.
    pub async fn generate(
        &self,
        mut call: GenerateCall,
    ) -> Result<GenerationStream, GenerateError> {
        self.check_running()?;
        let permit = admit(&self.shared.texts)?;
        let (guard, opened) = match &call.session {
            Some(id) => {
                let (guard, opened) = self.open_session(id, call.expected_position).await?;
                (Some(guard), opened)
            }
            None => (None, None),
        };
        let wanted = match (&call.session, &opened) {
            (Some(id), Some((key, _))) => session_model(id, key, &call.model)?,
            _ => ModelRef::Reference(std::mem::take(&mut call.model)),
        };
        let text = std::mem::take(&mut call.prime);
        let (model, prime) = match self.encode(wanted, text).await {
            Err(GenerateError::Model(ModelSourceError::Gone(model))) if opened.is_some() => {
                let id = call
                    .session
                    .clone()
                    .expect("only a named session is opened");
                return Err(GenerateError::SessionModelGone { id, model });
            }
            encoded => encoded?,
        };
        self.submit(call, permit, guard, opened, model, &prime)
    }

    /// Scores a text, between the texts that are generated.
    ///
    /// # Errors
    /// `Model`, `UnknownCharacter`, `TextTooShort`, `Overloaded`, `Deadline`,
    /// `Stopping`, `Internal`.
    pub async fn score(&self, call: ScoreCall) -> Result<Scored, GenerateError> {
        self.check_running()?;
        let permit = admit(&self.shared.scores)?;
        let wanted = ModelRef::Reference(call.model);
        let (model, tokens) = self.encode(wanted, call.text).await?;
        if tokens.len() < 2 {
            return Err(GenerateError::TextTooShort(tokens.len()));
        }
        let worker = self.least_loaded();
        let load = worker.load.add(tokens.len());
        let (reply, answer) = oneshot::channel();
        let job = ScoreJob::new(model, tokens, call.deadline, reply, permit, load);
        worker
            .inbox
            .put(Command::Score(Box::new(job)))
            .map_err(|_| GenerateError::Stopping)?;
        answer
            .await
            .unwrap_or_else(|_| Err(GenerateError::Internal("a worker failed".to_owned())))
    }

    /// Ends the texts of a model that is removed, and lets go of its weights.
    /// Its sessions stay, and say that their model is gone.
    pub fn drop_model(&self, id: &ModelId) {
        for worker in &self.shared.workers {
            // A worker that stops has let go of it already.
            let _ = worker.inbox.put(Command::DropModel(id.clone()));
        }
    }

    /// Ends all texts, joins the workers, and saves the sessions. Blocks, for
    /// a little more than the grace of the configuration; a second call does
    /// nothing.
    ///
    /// # Errors
    /// The sessions could not be saved.
    pub fn stop(&self) -> std::io::Result<()> {
        if self.shared.stopping.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        for worker in &self.shared.workers {
            worker.inbox.stop();
        }
        let threads = std::mem::take(
            &mut *self
                .shared
                .threads
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for thread in threads {
            // What a worker panicked with was logged where it was caught.
            let _ = thread.join();
        }
        self.shared.book.save()
    }

    fn check_running(&self) -> Result<(), GenerateError> {
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(GenerateError::Stopping);
        }
        Ok(())
    }

    /// Opens a session; waits a little for a call whose reader has left, so
    /// that one who repeats a broken call does not meet himself.
    async fn open_session(
        &self,
        id: &SessionId,
        expected: Option<u64>,
    ) -> Result<(SessionGuard, Opened), GenerateError> {
        let book = &self.shared.book;
        let until = tokio::time::Instant::now() + LEAVING_WAIT;
        loop {
            let freed = book.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            match book.open_session(id, expected) {
                Ok(opened) => return Ok(opened),
                Err(SessionError::Busy { leaving: true })
                    if tokio::time::timeout_at(until, freed).await.is_ok() => {}
                Err(error) => {
                    return Err(GenerateError::Session {
                        id: id.clone(),
                        error,
                    });
                }
            }
        }
    }

    /// A model, and the characters of a text as it numbers them.
    async fn encode(
        &self,
        wanted: ModelRef,
        text: String,
    ) -> Result<(Arc<LoadedModel>, Vec<u32>), GenerateError> {
        self.ask_models(move |models| {
            let model = wanted.load(models)?;
            let tokens = model.vocabulary.encode(&text);
            Ok((model, tokens.map_err(GenerateError::UnknownCharacter)?))
        })
        .await
    }

    async fn load(&self, id: ModelId) -> Result<Arc<LoadedModel>, GenerateError> {
        self.ask_models(move |models| Ok(models.load(&id)?)).await
    }

    /// Asks for a model where blocking is allowed, as reading it or numbering
    /// a long text may take long. There are no tensors in it, so any thread
    /// will do.
    async fn ask_models<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn ModelSource) -> Result<T, GenerateError> + Send + 'static,
    ) -> Result<T, GenerateError> {
        let models = Arc::clone(&self.shared.models);
        tokio::task::spawn_blocking(move || ask(models.as_ref()))
            .await
            .unwrap_or_else(|error| Err(GenerateError::Internal(error.to_string())))
    }

    fn submit(
        &self,
        call: GenerateCall,
        permit: Permit,
        guard: Option<SessionGuard>,
        opened: Opened,
        model: Arc<LoadedModel>,
        prime: &[u32],
    ) -> Result<GenerationStream, GenerateError> {
        self.check_prime(prime)?;
        let begin = begin(opened, call.seed);
        if !fits(&begin, &model) {
            return Err(GenerateError::Internal(
                "a session does not fit its model".to_owned(),
            ));
        }
        let unfed = begin.unfed.len();
        let feed: Vec<u32> = begin.unfed.iter().chain(prime.iter().copied()).collect();
        if feed.is_empty() {
            return Err(GenerateError::EmptyPrime);
        }
        let started = Started {
            session: call.session.clone(),
            model: model.id.clone(),
            seed: begin.random.seed,
            position: begin.position,
        };
        let prime_chars = prime.len() as u64;
        let worker = self.least_loaded();
        let buffer = TextBuffer::new(
            started,
            prime_chars,
            self.shared.config.max_unread_chars,
            Arc::clone(&worker.inbox),
            permit,
        );
        let lease = guard.as_ref().and_then(SessionGuard::mark);
        let book = Arc::clone(&self.shared.book);
        let stream = GenerationStream::new(Arc::clone(&buffer), book, lease);
        let key = ModelKey {
            id: model.id.clone(),
            digest: model.digest,
        };
        let parts = JobParts {
            buffer,
            settings: call.settings,
            draws: Draws::at(begin.random),
            stops: stops(&model, &call.stop),
            logprobs: call.logprobs,
            max_chars: call.max_chars,
            deadline: call.deadline,
            state: begin
                .hidden
                .as_deref()
                .cloned()
                .unwrap_or_else(|| HiddenState::zeros(model.weights.architecture())),
            load: worker.load.add(feed.len()),
            feed,
            unfed,
            primed_position: begin.position + prime_chars,
            prime_chars,
            progress: guard.map(|guard| Progress::new(guard, key, begin, prime)),
            model,
        };
        worker
            .inbox
            .put(Command::Generate(Box::new(Job::new(parts))))
            .map_err(|_| GenerateError::Stopping)?;
        Ok(stream)
    }

    fn check_prime(&self, prime: &[u32]) -> Result<(), GenerateError> {
        let most = self.shared.config.max_prime_chars;
        let chars = prime.len();
        if chars > most {
            return Err(GenerateError::PrimeTooLong { chars, most });
        }
        Ok(())
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
    /// An engine that nobody holds any more must not leave threads behind.
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.inbox.stop();
        }
    }
}

fn admit(admission: &Arc<Admission>) -> Result<Permit, GenerateError> {
    admission.admit().ok_or(GenerateError::Overloaded {
        retry_after: RETRY_AFTER,
    })
}

/// Where a call begins: the random numbers go on, unless a seed is given or
/// there are none yet.
fn begin(opened: Opened, seed: Option<u64>) -> SessionState {
    match (opened, seed) {
        (Some((_, point)), None) => point,
        (Some((_, point)), Some(seed)) => SessionState {
            random: RandomState::seeded(seed),
            ..point
        },
        (None, seed) => SessionState::origin(seed.unwrap_or_else(rand::random)),
    }
}

fn fits(point: &SessionState, model: &LoadedModel) -> bool {
    let architecture = model.weights.architecture();
    point.fits(architecture.state_len(), architecture.vocabulary_size)
}

/// The stop texts that the model can write; others never come.
fn stops(model: &LoadedModel, texts: &[String]) -> StopMatcher {
    let encoded = texts.iter().filter(|text| !text.is_empty());
    StopMatcher::new(
        encoded
            .filter_map(|text| model.vocabulary.encode(text).ok())
            .collect(),
    )
}

fn report(restored: Restored, folder: Option<&Path>) {
    if let Some(folder) = folder {
        let Restored { sessions, lost } = restored;
        tracing::info!(sessions, lost, folder = %folder.display(), "sessions restored");
    }
}
