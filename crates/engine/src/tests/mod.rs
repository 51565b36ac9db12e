//! Tests of the engine, on small networks of random weights.
#![allow(clippy::unwrap_used)]

mod commit;
mod controlled_storage;
mod failing_device;
mod fairness;
mod golden_texts;
mod interleavings;
mod invariants;
mod limits;
mod precision;
mod prompt_cache;
mod restart;
mod retry;
mod snapshots;
mod storm;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::check::check;
use charlstm_model::decode_step::{DecodeBatch, DecodeDevice, Int8Processor, Precision, Processor};
use charlstm_model::parameters::Parameters;
use charlstm_model::sampler::{Draws, RandomState, Sampler, SamplingSettings, log_probability};
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{LoadedModel, ModelId};
use charlstm_store::session::{
    EmbeddedSessions, EmbeddedSettings, ListRequest, MemorySessions, Owner, PortableSession,
    SessionError, SessionId, SessionInfo, SessionKey, SessionLimits, SessionState, SessionStorage,
};
use futures_util::StreamExt;
use tempfile::TempDir;

use crate::*;

/// Characters of the test models.
const ALPHABET: &str = "\n abcdefghijklmnopqrs";

/// Maximum time that a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Defines each test once per session backend; one of them computes in float32,
/// the other in int8.
macro_rules! on_each_backend {
    ($($(#[$attribute:meta])* async fn $name:ident($backend:ident: &Backend) $body:block)*) => {
        on_each_backend!(@module memory_float32, Backend::memory; $($name($backend) $body)*);
        on_each_backend!(@module disk_int8, Backend::disk; $($name($backend) $body)*);
    };
    (@module $module:ident, $new:path; $($name:ident($backend:ident) $body:block)*) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let $backend = &$new();
                    $body
                }
            )*
        }
    };
}
use on_each_backend;

/// Where the sessions of a test are.
struct Backend {
    /// `None`: in memory.
    folder: Option<TempDir>,
    opened: AtomicUsize,
    /// The precision of the models.
    precision: Precision,
}

impl Backend {
    fn memory() -> Self {
        Self {
            folder: None,
            opened: AtomicUsize::new(0),
            precision: Precision::Float32,
        }
    }

    fn disk() -> Self {
        Self {
            folder: Some(tempfile::tempdir().unwrap()),
            opened: AtomicUsize::new(0),
            precision: Precision::Int8,
        }
    }

    /// Opens an empty storage.
    fn open(&self, limits: SessionLimits) -> Arc<dyn SessionStorage> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        match &self.folder {
            None => Arc::new(MemorySessions::new(limits)),
            Some(folder) => open_folder(&folder.path().join(number.to_string()), limits),
        }
    }

    /// Starts an engine with the model `m@1` and no sessions.
    fn start(&self, config: EngineConfig) -> (Engine, Arc<TestModels>) {
        self.start_with(config, SessionLimits::default())
    }

    /// As [`Self::start`], with these limits.
    fn start_with(&self, config: EngineConfig, limits: SessionLimits) -> (Engine, Arc<TestModels>) {
        start_in(self.precision, config, self.open(limits))
    }
}

/// Opens the sessions of a folder.
fn open_folder(folder: &Path, limits: SessionLimits) -> Arc<dyn SessionStorage> {
    let settings = EmbeddedSettings {
        limits,
        ..EmbeddedSettings::default()
    };
    Arc::new(EmbeddedSessions::open(folder, settings).unwrap())
}

/// Models in memory, in place of the repository.
struct TestModels {
    models: Mutex<HashMap<ModelId, TestModel>>,
    /// The precision of the server.
    precision: Mutex<Precision>,
    /// Whether int8 is refused for all models.
    refuses_int8: Mutex<bool>,
}

/// A model in both precisions.
struct TestModel {
    float32: Arc<LoadedModel>,
    int8: Arc<LoadedModel>,
}

impl TestModels {
    fn new(precision: Precision) -> Self {
        Self {
            models: Mutex::default(),
            precision: Mutex::new(precision),
            refuses_int8: Mutex::new(false),
        }
    }

    fn add(&self, name: &str, version: u64, seed: u64) -> ModelId {
        let id = ModelId {
            name: name.to_owned(),
            version,
        };
        let parameters = parameters(seed, 20);
        let model = TestModel {
            float32: Arc::new(model(&id, seed, &parameters, &Processor::default())),
            int8: Arc::new(model(&id, seed, &parameters, &Int8Processor::default())),
        };
        self.models.lock().unwrap().insert(id.clone(), model);
        id
    }

    /// Changes the precision of the server, as a restart with another setting
    /// does.
    fn set_precision(&self, precision: Precision) {
        *self.precision.lock().unwrap() = precision;
    }

    fn get(
        &self,
        id: &ModelId,
        precision: Option<Precision>,
    ) -> Result<Arc<LoadedModel>, ModelSourceError> {
        let models = self.models.lock().unwrap();
        let model = models.get(id);
        let model = model.ok_or_else(|| ModelSourceError::Gone(id.clone()))?;
        let refuses_int8 = *self.refuses_int8.lock().unwrap();
        match precision.unwrap_or(*self.precision.lock().unwrap()) {
            Precision::Int8 if !refuses_int8 => Ok(Arc::clone(&model.int8)),
            Precision::Int8 if precision.is_some() => Err(ModelSourceError::PrecisionUnavailable {
                precision: Precision::Int8,
                reason: "a test says so".to_owned(),
            }),
            _ => Ok(Arc::clone(&model.float32)),
        }
    }

    fn remove(&self, id: &ModelId) {
        self.models.lock().unwrap().remove(id);
    }
}

impl ModelSource for TestModels {
    fn resolve(&self, reference: &str) -> Result<ModelId, ModelSourceError> {
        let models = self.models.lock().unwrap();
        let is_named = |id: &&ModelId| {
            reference.is_empty()
                || id.name == reference
                || format!("{}@{}", id.name, id.version) == reference
        };
        models
            .keys()
            .filter(is_named)
            .max_by_key(|id| id.version)
            .cloned()
            .ok_or_else(|| ModelSourceError::NotFound(format!("no model {reference:?}")))
    }

    fn loaded(&self, id: &ModelId, precision: Option<Precision>) -> Option<Arc<LoadedModel>> {
        // Version 2 takes the way through a thread that may block.
        self.get(id, precision).ok().filter(|_| id.version != 2)
    }

    fn load(
        &self,
        id: &ModelId,
        precision: Option<Precision>,
    ) -> Result<Arc<LoadedModel>, ModelSourceError> {
        self.get(id, precision)
    }
}

fn parameters(seed: u64, hidden_size: usize) -> Parameters {
    let architecture = Architecture {
        vocabulary_size: Vocabulary::of(ALPHABET.chars()).len(),
        hidden_size,
        num_layers: 2,
    };
    filled(architecture, seed)
}

/// Parameters that look like noise, the same on every machine.
fn filled(architecture: Architecture, seed: u64) -> Parameters {
    let mut parameters = Parameters::zeros(architecture);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for value in &mut parameters.values {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Wide enough that the state matters for the next character.
        *value = ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0;
    }
    parameters
}

fn model(
    id: &ModelId,
    seed: u64,
    parameters: &Parameters,
    device: &dyn DecodeDevice,
) -> LoadedModel {
    let weights = Arc::new(device.prepare(parameters).unwrap());
    LoadedModel {
        digest: [seed as u8; 32],
        id: id.clone(),
        replacement: 'e',
        vocabulary: Vocabulary::of(ALPHABET.chars()),
        check: check(&weights).unwrap(),
        weights,
    }
}

fn config() -> EngineConfig {
    EngineConfig {
        workers: 2,
        max_batch: 16,
        max_queue: 64,
        stop_grace: Duration::from_secs(5),
        ..EngineConfig::default()
    }
}

/// Starts an engine with the model `m@1` and sessions in memory.
fn start(config: EngineConfig) -> (Engine, Arc<TestModels>) {
    Backend::memory().start(config)
}

/// Starts an engine with the model `m@1` on a session storage.
fn start_on(config: EngineConfig, storage: Arc<dyn SessionStorage>) -> (Engine, Arc<TestModels>) {
    start_in(Precision::Int8, config, storage)
}

/// As [`start_on`], on a server of this precision.
fn start_in(
    precision: Precision,
    config: EngineConfig,
    storage: Arc<dyn SessionStorage>,
) -> (Engine, Arc<TestModels>) {
    let models = Arc::new(TestModels::new(precision));
    models.add("m", 1, 1);
    let source = Arc::clone(&models) as Arc<dyn ModelSource>;
    let engine = Engine::start(config, source, storage).unwrap();
    (engine, models)
}

fn id(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn key(name: &str) -> SessionKey {
    SessionKey::new(Owner::admin(), id(name))
}

fn score_call() -> ScoreCall {
    ScoreCall {
        caller: CallerId::default(),
        model: "m".to_owned(),
        unknown: UnknownCharacters::Reject,
        logprobs: false,
        deadline: None,
    }
}

/// Scores a text in parts.
async fn score(engine: &Engine, parts: &[&str]) -> Result<Scored, GenerateError> {
    let mut scorer = engine.score(score_call()).await?;
    for part in parts {
        scorer.push((*part).to_owned()).await?;
    }
    scorer.finish()
}

/// A seeded call without a session.
fn call(prompt: &str, max_chars: u64) -> GenerateCall {
    GenerateCall {
        caller: CallerId::default(),
        model: String::new(),
        owner: Owner::admin(),
        prompt: prompt.to_owned(),
        unknown: UnknownCharacters::Reject,
        max_chars,
        session: SessionSource::None,
        owner_limit: None,
        snapshot_for: None,
        settings: SamplingSettings::default(),
        seed: Some(1),
        stop: Vec::new(),
        logprobs: false,
        expected_position: None,
        precision: None,
        deadline: None,
    }
}

/// A call in a session that continues the session's random sequence.
fn session_call(name: &str, prompt: &str, max_chars: u64) -> GenerateCall {
    GenerateCall {
        session: SessionSource::Stored(key(name)),
        seed: None,
        ..call(prompt, max_chars)
    }
}

/// A call in a session with seed 1.
fn seeded_call(name: &str, prompt: &str, max_chars: u64) -> GenerateCall {
    GenerateCall {
        seed: Some(1),
        ..session_call(name, prompt, max_chars)
    }
}

/// A repeat of a call, as a client sends it once it has received `started`.
fn repeat(call: &GenerateCall, started: &Started) -> GenerateCall {
    GenerateCall {
        model: format!("{}@{}", started.model.name, started.model.version),
        precision: Some(started.precision),
        seed: Some(started.seed),
        expected_position: Some(started.position),
        ..call.clone()
    }
}

/// All that a generation returned.
#[derive(Debug)]
struct WholeText {
    started: Started,
    text: String,
    logprobs: Vec<f32>,
    finished: Finished,
}

/// Reads to the end, and checks that every position is right.
async fn read(mut stream: GenerationStream) -> Result<WholeText, GenerateError> {
    let mut started: Option<Started> = None;
    let mut text = String::new();
    let mut logprobs = Vec::new();
    let mut last_position = None;
    while let Some(event) = stream.next().await {
        match event? {
            GenerationEvent::Started(event) => {
                assert!(started.is_none() && text.is_empty());
                started = Some(event);
            }
            GenerationEvent::Text(event) => {
                assert!(started.is_some() && !event.text.is_empty());
                let chars = event.text.chars().count() as u64;
                if let Some(last) = last_position {
                    assert_eq!(event.position, last + chars);
                }
                last_position = Some(event.position);
                text.push_str(&event.text);
                logprobs.extend(event.logprobs);
            }
            GenerationEvent::Finished(finished) => {
                assert!(stream.next().await.is_none());
                assert_eq!(finished.chars, text.chars().count() as u64);
                return Ok(WholeText {
                    started: started.unwrap(),
                    text,
                    logprobs,
                    finished,
                });
            }
        }
    }
    panic!("the stream ended without a last event");
}

async fn whole(engine: &Engine, call: GenerateCall) -> WholeText {
    let whole = async { read(engine.generate(call).await.unwrap()).await.unwrap() };
    tokio::time::timeout(PATIENCE, whole).await.unwrap()
}

/// The text of a call that must succeed.
async fn text(engine: &Engine, call: GenerateCall) -> String {
    whole(engine, call).await.text
}

/// Why a call is rejected.
async fn rejection(engine: &Engine, call: GenerateCall) -> GenerateError {
    match engine.generate(call).await {
        Ok(_) => panic!("the call must be rejected"),
        Err(error) => error,
    }
}

/// Why the session of a call cannot be used.
async fn session_rejection(engine: &Engine, call: GenerateCall) -> SessionError {
    match rejection(engine, call).await {
        GenerateError::Session { error, .. } => error,
        other => panic!("{other}"),
    }
}

/// Reads at least `chars` characters, which must come.
async fn read_some(stream: &mut GenerationStream, chars: usize) -> String {
    let mut text = String::new();
    while text.chars().count() < chars {
        match stream.next().await.unwrap().unwrap() {
            GenerationEvent::Text(event) => text.push_str(&event.text),
            GenerationEvent::Started(_) => {}
            GenerationEvent::Finished(_) => panic!("the text ended early"),
        }
    }
    text
}

/// Reads to the last event.
async fn last_event(mut stream: GenerationStream) -> Result<Finished, GenerateError> {
    loop {
        if let GenerationEvent::Finished(finished) = stream.next().await.unwrap()? {
            return Ok(finished);
        }
    }
}

/// The text that a plain loop over the decode step gives, in the precision of
/// the server.
fn reference(models: &TestModels, prompt: &str, chars: u64, seed: u64) -> (String, Vec<f32>) {
    let model = models.load(&models.resolve("").unwrap(), None).unwrap();
    let mut batch = DecodeBatch::new(Arc::clone(&model.weights), 1).unwrap();
    batch.push(&model.weights.zero_state());
    let mut draws = Draws::at(RandomState::seeded(seed));
    let mut sampler = Sampler::default();
    let tokens = model.vocabulary.encode(prompt).unwrap();
    let (&last, fed) = tokens.split_last().unwrap();
    for &token in fed {
        batch.step(&[token]).unwrap();
    }
    let mut token = last;
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    for _ in 0..chars {
        let logits = batch.step(&[token]).unwrap();
        token = sampler.choose(&SamplingSettings::default(), logits, draws.uniform());
        logprobs.push(log_probability(logits, token) as f32);
        text.push(model.vocabulary.character(token));
    }
    (text, logprobs)
}

async fn session(engine: &Engine, name: &str) -> Result<SessionInfo, SessionError> {
    engine.session(&key(name)).await
}

async fn position(engine: &Engine, name: &str) -> u64 {
    session(engine, name).await.unwrap().position
}

/// All sessions.
async fn all_sessions(engine: &Engine) -> Vec<SessionInfo> {
    let request = ListRequest {
        owner: None,
        max_sessions: 10_000,
        after: None,
    };
    engine.sessions(request).await.unwrap().sessions
}

/// Waits until `holds`, at most [`PATIENCE`].
async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "what the test waits for did not happen");
}

/// Waits until every call has ended and is committed.
async fn until_idle(engine: &Engine) {
    until(|| engine.live_generations() == 0).await;
}
