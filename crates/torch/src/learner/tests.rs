use std::collections::HashMap;
use std::sync::Arc;

use super::*;
use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{DecodeBatch, DecodeWeights};
use charlstm_model::parameters::layout;

fn config() -> LearnerConfig {
    LearnerConfig {
        architecture: Architecture {
            vocabulary_size: 9,
            hidden_size: 12,
            num_layers: 2,
        },
        batch_size: 5,
        sequence_length: 8,
        epochs: 3,
        dropout: 0.3,
        learning_rate: 0.01,
        clip_norm: 5.0,
        seed: 7,
        optimizer: OptimizerConfig::NOTEBOOK,
    }
}

fn start(threads: usize, config: LearnerConfig, tokens: CorpusTokens) -> TorchLearner {
    TorchLearner::start(on_cpu(threads), config, tokens, None).expect("a learner")
}

fn on_cpu(threads: usize) -> TorchLearnerFactory {
    TorchLearnerFactory {
        device: Device::Cpu,
        threads,
    }
}

fn tokens() -> CorpusTokens {
    (0..170u32).map(|i| (i * i + i / 5) % 9).collect()
}

fn run(learner: &mut TorchLearner, steps: usize) -> Vec<StepOutcome> {
    (0..steps)
        .map(|_| learner.step().expect("a step"))
        .collect()
}

#[test]
fn a_stopped_and_resumed_training_continues_bit_for_bit() {
    for threads in [1, 2] {
        let mut uninterrupted = start(threads, config(), tokens());
        let expected = run(&mut uninterrupted, 10);
        for stop in [1, 4, 6] {
            let mut first = start(threads, config(), tokens());
            let mut outcomes = run(&mut first, stop);
            let state = first.state().expect("a state");
            drop(first);
            let mut second = TorchLearner::resume(on_cpu(threads), config(), tokens(), state)
                .expect("a learner");
            outcomes.extend(run(&mut second, 10 - stop));
            assert_eq!(outcomes, expected, "stopped after {stop} steps");
            assert_eq!(
                second.state().expect("a state"),
                uninterrupted.state().expect("a state")
            );
        }
    }
}

#[test]
fn the_loss_falls_on_a_predictable_text() {
    let tokens: CorpusTokens = (0..2000u32).map(|i| i % 9).collect();
    let mut learner = start(2, config(), tokens.clone());
    let outcomes = run(&mut learner, 150);
    assert!(outcomes[0].loss > 2.0, "{:?}", outcomes[0]);
    // One target in eight is wrapped around and not predictable.
    let loss = learner.evaluate(&tokens).expect("a loss");
    assert!(loss < 0.6, "{loss}");
    let epochs: Vec<u32> = [0, 49, 50, 149].map(|step| outcomes[step].epoch).to_vec();
    assert_eq!(epochs, [1, 1, 2, 3]);
    let ends: Vec<u64> = outcomes
        .iter()
        .filter(|outcome| outcome.epoch_loss.is_some())
        .map(|outcome| outcome.step)
        .collect();
    assert_eq!(ends, [50, 100, 150]);
}

#[test]
fn a_state_of_another_network_is_rejected() {
    let learner = start(1, config(), tokens());
    let mut state = learner.state().expect("a state");
    state.parameters.pop();
    let error = TorchLearner::resume(on_cpu(1), config(), tokens(), state)
        .err()
        .expect("rejected");
    assert!(error.to_string().contains("parameters"), "{error}");
}

/// The results of the notebook's training steps in PyTorch:
/// tests/golden/notebook.json.
#[derive(serde::Deserialize)]
struct Golden {
    vocabulary_size: usize,
    learning_rate: f64,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    hidden_size: usize,
    num_layers: usize,
    batch_size: usize,
    sequence_length: usize,
    clip_norm: f64,
    token_count: usize,
    steps: Vec<Step>,
    first_gradients: HashMap<String, Vec<f64>>,
    last_parameters: HashMap<String, Vec<f64>>,
    evaluation: Evaluation,
}

#[derive(serde::Deserialize)]
struct Step {
    loss: f64,
    gradient_norm: f64,
}

#[derive(serde::Deserialize)]
struct Evaluation {
    tokens: Vec<u32>,
    logits: Vec<Vec<f64>>,
}

/// Asserts that two vectors differ by at most 1e-4 of their norm.
fn assert_close(what: &str, ours: &[f32], expected: &[f64]) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut ours.iter().zip(expected).map(|(a, b)| f64::from(*a) - b));
    let size = norm(&mut expected.iter().copied());
    assert!(difference <= 1e-4 * size, "{what}: {difference} of {size}");
}

#[test]
fn losses_gradients_and_parameters_match_those_of_the_notebook_in_pytorch() {
    let golden: Golden =
        serde_json::from_str(include_str!("../../../../tests/golden/notebook.json"))
            .expect("the golden file");
    for case in &golden.cases {
        for threads in [1, 2] {
            assert_matches_pytorch(&golden, case, threads);
        }
    }
}

/// Takes the steps of a case and compares everything that PyTorch reported.
fn assert_matches_pytorch(golden: &Golden, case: &Case, threads: usize) {
    let architecture = Architecture {
        vocabulary_size: golden.vocabulary_size,
        hidden_size: case.hidden_size,
        num_layers: case.num_layers,
    };
    let mut initial = Parameters::zeros(architecture);
    for (k, value) in initial.values.iter_mut().enumerate() {
        *value = (0.1 * (0.7 * k as f64 + 0.3).sin()) as f32;
    }
    let config = LearnerConfig {
        architecture,
        batch_size: case.batch_size,
        sequence_length: case.sequence_length,
        epochs: 1,
        dropout: 0.0,
        learning_rate: golden.learning_rate,
        clip_norm: case.clip_norm,
        seed: 0,
        optimizer: OptimizerConfig::NOTEBOOK,
    };
    let tokens = (0..case.token_count)
        .map(|i| ((7 * i * i + 3 * i) % golden.vocabulary_size) as u32)
        .collect();
    let mut learner =
        TorchLearner::start(on_cpu(threads), config, tokens, Some(initial)).expect("a learner");
    for (index, step) in case.steps.iter().enumerate() {
        let outcome = learner.step().expect("a step");
        assert!(
            (outcome.loss / step.loss - 1.0).abs() < 1e-4,
            "{}",
            case.name
        );
        assert!((outcome.gradient_norm / step.gradient_norm - 1.0).abs() < 1e-4);
        if index == 0 {
            let (_, gradient) = learner.backend.parameters_and_gradient();
            for view in layout(&architecture) {
                let expected = &case.first_gradients[&view.name];
                assert_close(&view.name, &gradient[view.range], expected);
            }
        }
    }
    let parameters = learner.parameters().expect("parameters");
    for view in layout(&architecture) {
        let ours = &parameters.values[view.range.clone()];
        assert_close(&view.name, ours, &case.last_parameters[&view.name]);
    }
    let weights = Arc::new(DecodeWeights::on_processor(&parameters));
    let mut batch = DecodeBatch::new(weights.clone(), 1).expect("a batch");
    let mut state = weights.zero_state();
    let logits = batch
        .prefill_logits(&mut state, &case.evaluation.tokens)
        .expect("logits");
    assert_close("logits", &logits, &case.evaluation.logits.concat());
}
