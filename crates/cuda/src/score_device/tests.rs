//! Tests with a simulated GPU: the CPU, which counts its scores and fails as
//! configured.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{DecodeBatch, testing};
use charlstm_model::initial::Initial;

use super::*;
use crate::health::CudaEvent;

/// What the simulated GPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Works,
    /// Has no memory for the buffers of a score.
    IsFull,
    /// Returns other logits than the CPU.
    IsWrong,
    /// Fails while it scores this number of characters or more at once, after
    /// it has changed the logits and the state.
    FailsFrom(usize),
}

#[derive(Debug)]
struct Simulated {
    weights: Arc<DecodeWeights>,
    behaviour: Behaviour,
    fed: Arc<AtomicUsize>,
}

struct SimulatedScorer(Arc<Simulated>);

fn lost() -> CudaError {
    CudaError::DeviceLost {
        operation: "a score",
        code: "simulated".to_owned(),
    }
}

impl FloatWeights for Simulated {
    fn device_bytes(&self) -> usize {
        1000
    }

    fn scorer(self: Arc<Self>) -> Result<Box<dyn Scorer>, CudaError> {
        if self.behaviour == Behaviour::IsFull {
            return Err(CudaError::OutOfMemory {
                what: "the memory of a score",
                bytes: 2,
                free: 1,
            });
        }
        Ok(Box::new(SimulatedScorer(self)))
    }
}

impl Scorer for SimulatedScorer {
    fn feed(
        &mut self,
        state: &mut [f32],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        if matches!(self.0.behaviour, Behaviour::FailsFrom(limit) if tokens.len() >= limit) {
            state.fill(7.0);
            return Err(lost());
        }
        self.0.fed.fetch_add(tokens.len(), Ordering::Relaxed);
        let mut hidden = HiddenState::Float32(state.into());
        let mut batch = self.0.weights.backend(1).expect("a CPU");
        let prefilled = batch.prefill(&mut hidden, tokens, Some(logits));
        prefilled.expect("a CPU");
        state.copy_from_slice(hidden.float32());
        if self.0.behaviour == Behaviour::IsWrong {
            *logits.last_mut().expect("logits") += 1e-6;
        }
        Ok(())
    }
}

/// Prepares models for the CPU with scores on a simulated GPU.
struct Bench {
    behaviour: Behaviour,
    health: Arc<Health>,
    /// Characters that the GPU has scored.
    fed: Arc<AtomicUsize>,
    events: Arc<Mutex<Vec<String>>>,
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.behaviour.fmt(f)
    }
}

impl Bench {
    fn new(behaviour: Behaviour) -> Self {
        let events: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&events);
        let on_event = move |event: CudaEvent<'_>| {
            let line = match event {
                CudaEvent::Failed(error) => format!("failed: {error}"),
                CudaEvent::ModelOnProcessor(error) => format!("model on the CPU: {error}"),
                CudaEvent::ScoresOnProcessor(error) => format!("scores on the CPU: {error}"),
            };
            log.lock().expect("no panic").push(line);
        };
        Self {
            behaviour,
            health: Arc::new(Health::new(Box::new(on_event))),
            fed: Arc::default(),
            events,
        }
    }

    /// Returns the number of characters scored on the GPU since the last call.
    fn fed(&self) -> usize {
        self.fed.swap(0, Ordering::Relaxed)
    }

    fn events(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().expect("no panic"))
    }
}

impl DecodeDevice for Bench {
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        let uploaded = Arc::new(Simulated {
            weights: Arc::new(DecodeWeights::on_processor(parameters)),
            behaviour: self.behaviour,
            fed: Arc::clone(&self.fed),
        });
        let on_processor = DecodeWeights::on_processor(parameters);
        with_scores_on(Some(uploaded), on_processor, &self.health)
    }
}

fn parameters() -> Parameters {
    let architecture = Architecture {
        vocabulary_size: 11,
        hidden_size: 20,
        num_layers: 2,
    };
    Initial::Uniform.parameters(architecture, 5)
}

const TEXT: [u32; 30] = [3; 30];

/// Scores a text in two parts; returns the logits and the final state.
fn score(weights: &Arc<DecodeWeights>) -> (Vec<f32>, HiddenState) {
    let mut batch = DecodeBatch::new(Arc::clone(weights), 4).expect("a batch");
    let mut state = weights.zero_state();
    let mut logits = Vec::new();
    for part in [&TEXT[..7], &TEXT[7..]] {
        logits.extend(batch.prefill_logits(&mut state, part).expect("a score"));
    }
    (logits, state)
}

fn expected() -> (Vec<f32>, HiddenState) {
    score(&Arc::new(DecodeWeights::on_processor(&parameters())))
}

#[test]
fn scores_run_on_the_gpu_and_nothing_else_does() {
    let bench = Bench::new(Behaviour::Works);
    let weights = Arc::new(bench.prepare(&parameters()).expect("weights"));
    assert_eq!(bench.fed(), COMPARED_CHARS, "the comparison at loading");
    assert_eq!(weights.arithmetic(), Arithmetic::FLOAT32);
    let on_processor = DecodeWeights::on_processor(&parameters()).bytes();
    assert_eq!(weights.bytes(), on_processor + 1000);

    let mut batch = DecodeBatch::new(Arc::clone(&weights), 4).expect("a batch");
    let mut state = weights.zero_state();
    batch.prefill(&mut state, &TEXT).expect("a prefill");
    let mut other = weights.zero_state();
    let mut chunks: [Chunk<'_>; 1] = [(&mut other, &TEXT)];
    batch.prefill_all(&mut chunks).expect("a prefill");
    batch.push(&state);
    batch.push(&other);
    batch.step(&[1, 2]).expect("a step");
    batch.swap_remove(0);
    assert_eq!(bench.fed(), 0, "sessions are computed on the CPU");

    assert_eq!(score(&weights), expected());
    assert_eq!(bench.fed(), TEXT.len());
    assert_eq!(bench.events(), [""; 0]);
}

#[test]
fn the_device_keeps_the_invariants_of_a_decode_step() {
    let bench = Bench::new(Behaviour::Works);
    testing::logits_match_the_textbook_network(&bench);
    testing::prefill_in_chunks_of_any_length_equals_steps(&bench);
    testing::a_removed_row_is_replaced_by_the_last_one(&bench);
}

#[test]
fn a_score_continues_on_the_cpu_if_the_gpu_fails_and_later_ones_run_there() {
    let bench = Bench::new(Behaviour::FailsFrom(COMPARED_CHARS + 1));
    let weights = Arc::new(bench.prepare(&parameters()).expect("weights"));
    bench.fed();
    let on_processor = Arc::new(DecodeWeights::on_processor(&parameters()));
    let [mut batch, mut other] = [&weights, &on_processor].map(|weights| {
        let mut batch = DecodeBatch::new(Arc::clone(weights), 4).expect("a batch");
        batch.push(&weights.zero_state());
        batch.step(&[2]).expect("a step");
        batch
    });
    let mut state = weights.zero_state();
    batch.prefill_logits(&mut state, &TEXT).expect("a score");
    let [given, same] = [&mut batch, &mut other].map(|batch| batch.step(&[4]).map(<[f32]>::to_vec));
    let (given, same) = (given.expect("a step"), same.expect("a step"));
    assert_eq!(given, same, "a session in the same batch is not affected");
    assert_eq!(bench.fed(), 0, "all of the text is scored on the CPU");
    assert_eq!(bench.events(), [format!("failed: {}", lost())]);
    assert_eq!(score(&weights), expected());
    assert_eq!((bench.fed(), bench.events().len()), (0, 0));
}

#[test]
fn the_first_part_of_a_score_is_kept_if_the_gpu_fails_in_the_second() {
    let bench = Bench::new(Behaviour::FailsFrom(COMPARED_CHARS + 1));
    let weights = Arc::new(bench.prepare(&parameters()).expect("weights"));
    bench.fed();
    assert_eq!(score(&weights), expected());
    assert_eq!(bench.fed(), 7, "the first part");
    assert_eq!(bench.events(), [format!("failed: {}", lost())]);
}

#[test]
fn a_gpu_that_fails_for_generation_scores_nothing_any_more() {
    let bench = Bench::new(Behaviour::Works);
    let weights = Arc::new(bench.prepare(&parameters()).expect("weights"));
    drop(bench.health.report(lost()));
    bench.fed();
    assert_eq!(score(&weights), expected());
    assert_eq!(bench.fed(), 0);
}

#[test]
fn a_gpu_with_other_results_than_the_cpu_has_failed() {
    let bench = Bench::new(Behaviour::IsWrong);
    let weights = Arc::new(bench.prepare(&parameters()).expect("weights"));
    let reason = format!("failed: {}", CudaError::WrongResults);
    assert_eq!(bench.events(), [reason]);
    bench.fed();
    assert_eq!(score(&weights), expected());
    assert_eq!(bench.fed(), 0);
}

#[test]
fn a_model_that_does_not_fit_the_gpu_is_scored_on_the_cpu() {
    let bench = Bench::new(Behaviour::IsFull);
    let weights = Arc::new(bench.prepare(&parameters()).expect("weights"));
    let events = bench.events();
    assert!(
        matches!(&events[..], [event] if event.starts_with("scores on the CPU: out of GPU memory")),
        "{events:?}"
    );
    assert_eq!(score(&weights), expected());
    assert!(bench.health.is_usable(), "others may fit");
    let on_processor = DecodeWeights::on_processor(&parameters()).bytes();
    assert_eq!(weights.bytes(), on_processor, "nothing is kept on the GPU");
}

#[test]
fn a_network_whose_weights_are_not_finite_is_no_failure() {
    let mut parameters = parameters();
    let last = parameters.values.len() - 1;
    parameters.values[last] = f32::NAN;
    let bench = Bench::new(Behaviour::Works);
    bench.prepare(&parameters).expect("weights");
    assert_eq!(bench.events(), [""; 0]);
}
