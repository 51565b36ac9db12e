use std::collections::HashMap;
use std::sync::Arc;

use super::*;
use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{DecodeBatch, DecodeWeights, HiddenState};
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

fn place(threads: usize) -> TorchLearners {
    TorchLearners {
        device: Device::Cpu,
        threads,
    }
}

fn text() -> CorpusTokens {
    (0..170u32).map(|i| (i * i + i / 5) % 9).collect()
}

fn run(learner: &mut TorchLearner, steps: usize) -> Vec<StepOutcome> {
    (0..steps)
        .map(|_| learner.step().expect("a step"))
        .collect()
}

#[test]
fn a_training_that_was_stopped_and_resumed_is_bit_for_bit_the_same() {
    for threads in [1, 2] {
        let mut straight =
            TorchLearner::new(config(), place(threads), text(), None).expect("a learner");
        let expected = run(&mut straight, 10);
        for stop in [1, 4, 6] {
            let mut first =
                TorchLearner::new(config(), place(threads), text(), None).expect("a learner");
            let mut outcomes = run(&mut first, stop);
            let snapshot = first.state().expect("a snapshot");
            drop(first);
            let mut second = TorchLearner::restore(config(), place(threads), text(), snapshot)
                .expect("a learner");
            outcomes.extend(run(&mut second, 10 - stop));
            assert_eq!(outcomes, expected, "stopped after {stop}");
            assert_eq!(second.state().expect("one"), straight.state().expect("one"));
        }
    }
}

#[test]
fn the_loss_falls_on_a_text_with_a_rule() {
    let text: CorpusTokens = (0..2000u32).map(|i| i % 9).collect();
    let mut learner = TorchLearner::new(config(), place(2), text.clone(), None).expect("a learner");
    let outcomes = run(&mut learner, 150);
    assert!(outcomes[0].loss > 2.0, "{:?}", outcomes[0]);
    // One target in eight is wrapped around and breaks the rule.
    let loss = learner.evaluate(&text).expect("a loss");
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
fn a_snapshot_of_another_network_is_refused() {
    let learner = TorchLearner::new(config(), place(1), text(), None).expect("a learner");
    let mut snapshot = learner.state().expect("a snapshot");
    snapshot.parameters.pop();
    let error = TorchLearner::restore(config(), place(1), text(), snapshot)
        .err()
        .expect("refused");
    assert!(error.to_string().contains("parameters"), "{error}");
}

/// What the notebook's steps gave in PyTorch: tests/golden/notebook.json.
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

/// Asserts that two rows of numbers differ by at most 1e-4 of their norm.
fn assert_close(what: &str, ours: &[f32], expected: &[f64]) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut ours.iter().zip(expected).map(|(a, b)| f64::from(*a) - b));
    let size = norm(&mut expected.iter().copied());
    assert!(difference <= 1e-4 * size, "{what}: {difference} of {size}");
}

#[test]
fn losses_gradients_and_parameters_are_those_of_the_notebook_in_pytorch() {
    let golden: Golden =
        serde_json::from_str(include_str!("../../../../tests/golden/notebook.json"))
            .expect("the golden file");
    for case in &golden.cases {
        for threads in [1, 2] {
            follow(&golden, case, threads);
        }
    }
}

fn follow(golden: &Golden, case: &Case, threads: usize) {
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
        TorchLearner::new(config, place(threads), tokens, Some(initial)).expect("a learner");
    for (number, step) in case.steps.iter().enumerate() {
        let outcome = learner.step().expect("a step");
        assert!(
            (outcome.loss / step.loss - 1.0).abs() < 1e-4,
            "{}",
            case.name
        );
        assert!((outcome.gradient_norm / step.gradient_norm - 1.0).abs() < 1e-4);
        if number == 0 {
            let (_, gradients) = learner.backend.parts();
            for view in layout(&architecture) {
                let expected = &case.first_gradients[&view.name];
                assert_close(&view.name, &gradients[view.range], expected);
            }
        }
    }
    let parameters = learner.parameters().expect("parameters");
    for view in layout(&architecture) {
        let ours = &parameters.values[view.range.clone()];
        assert_close(&view.name, ours, &case.last_parameters[&view.name]);
    }
    let weights = Arc::new(DecodeWeights::on_processor(&parameters));
    let mut stepper = DecodeBatch::new(weights, 1).expect("a stepper");
    let mut state = HiddenState::zeros(&architecture);
    let logits = stepper
        .prefill_logits(&mut state, &case.evaluation.tokens)
        .expect("logits");
    assert_close("logits", &logits, &case.evaluation.logits.concat());
}
