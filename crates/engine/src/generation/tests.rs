//! The laws of the engine, on small networks of random weights.
#![allow(clippy::unwrap_used)]

mod bounds;
mod laws;
mod storm;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;

use super::*;
use crate::sessions::SessionId;
use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::DecodeWeights;
use charlstm_model::decode_step::check::check;
use charlstm_model::parameters::Parameters;
use charlstm_model::sampler::SamplingSettings;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{LoadedModel, ModelId};

/// Characters of the test models.
const ALPHABET: &str = "\n abcdefghijklmnopqrs";

/// Models in memory, in the place of the repository.
#[derive(Default)]
struct TestModels {
    models: Mutex<HashMap<ModelId, Arc<LoadedModel>>>,
}

impl TestModels {
    fn add(&self, name: &str, version: u64, seed: u64) -> ModelId {
        let id = ModelId {
            name: name.to_owned(),
            version,
        };
        let model = Arc::new(model(id.clone(), seed, 20));
        self.models.lock().unwrap().insert(id.clone(), model);
        id
    }

    fn remove(&self, id: &ModelId) {
        self.models.lock().unwrap().remove(id);
    }
}

impl ModelSource for TestModels {
    fn resolve(&self, reference: &str) -> Result<ModelId, ModelSourceError> {
        let models = self.models.lock().unwrap();
        let named = |id: &&ModelId| {
            reference.is_empty()
                || id.name == reference
                || format!("{}@{}", id.name, id.version) == reference
        };
        models
            .keys()
            .filter(named)
            .max_by_key(|id| id.version)
            .cloned()
            .ok_or_else(|| ModelSourceError::NotFound(format!("there is no model {reference:?}")))
    }

    fn load(&self, id: &ModelId) -> Result<Arc<LoadedModel>, ModelSourceError> {
        let models = self.models.lock().unwrap();
        let model = models.get(id).cloned();
        model.ok_or_else(|| ModelSourceError::Gone(id.clone()))
    }
}

fn model(id: ModelId, seed: u64, hidden_size: usize) -> LoadedModel {
    let vocabulary = Vocabulary::of(ALPHABET.chars());
    let architecture = Architecture {
        vocabulary_size: vocabulary.len(),
        hidden_size,
        num_layers: 2,
    };
    let mut parameters = Parameters::zeros(architecture);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for value in &mut parameters.values {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Wide enough that the state matters for what comes next.
        *value = ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0;
    }
    let weights = Arc::new(DecodeWeights::on_processor(&parameters));
    LoadedModel {
        digest: [seed as u8; 32],
        id,
        vocabulary,
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

/// An engine with the model `m@1`.
fn start(config: EngineConfig) -> (Engine, Arc<TestModels>) {
    let models = Arc::new(TestModels::default());
    models.add("m", 1, 1);
    let engine = Engine::start(config, Arc::clone(&models) as Arc<dyn ModelSource>).unwrap();
    (engine, models)
}

fn id(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

/// A seeded call without a session.
fn call(prime: &str, max_chars: u64) -> GenerateCall {
    GenerateCall {
        model: String::new(),
        prime: prime.to_owned(),
        max_chars,
        session: None,
        settings: SamplingSettings::default(),
        seed: Some(1),
        stop: Vec::new(),
        logprobs: false,
        expected_position: None,
        deadline: None,
    }
}

/// A call in a session, whose random numbers go on.
fn session_call(name: &str, prime: &str, max_chars: u64) -> GenerateCall {
    GenerateCall {
        session: Some(id(name)),
        seed: None,
        ..call(prime, max_chars)
    }
}

/// All that a generation gave.
#[derive(Debug)]
struct Whole {
    started: Started,
    text: String,
    logprobs: Vec<f32>,
    finished: Finished,
}

/// Reads to the end, and checks that every position tells the truth.
async fn read(mut stream: GenerationStream) -> Result<Whole, GenerateError> {
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
                return Ok(Whole {
                    started: started.unwrap(),
                    text,
                    logprobs,
                    finished,
                });
            }
        }
    }
    panic!("the stream ended without a finish");
}

async fn whole(engine: &Engine, call: GenerateCall) -> Whole {
    read(engine.generate(call).await.unwrap()).await.unwrap()
}

/// The text of a call that must go well.
async fn text(engine: &Engine, call: GenerateCall) -> String {
    whole(engine, call).await.text
}

/// Reads text until at least `chars` characters came; returns them.
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

/// Waits until `holds`, giving way to other tasks and threads.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
}
