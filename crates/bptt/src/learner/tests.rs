use std::collections::HashMap;
use std::sync::Arc;

use super::*;
use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{DecodeBatch, DecodeWeights};
use charlstm_model::learner::Techniques;
use charlstm_model::optimizer_config::OptimizerConfig;
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
        techniques: Techniques::default(),
        precision: TrainingPrecision::Float32,
    }
}

/// Every technique is on.
fn config_with_techniques() -> LearnerConfig {
    LearnerConfig {
        techniques: Techniques {
            locked_dropout: true,
            recurrent_dropout: 0.2,
            input_dropout: 0.1,
            average_decay: Some(0.9),
        },
        optimizer: OptimizerConfig::FAST,
        ..config()
    }
}

/// Computes with given instructions.
#[derive(Clone, Copy)]
struct Fixed {
    instructions: Instructions,
    threads: usize,
}

impl TrainerFactory for Fixed {
    fn trainer(
        &self,
        config: &LearnerConfig,
        parameters: &Parameters,
    ) -> Result<Box<dyn Trainer>, LearnError> {
        let config = TrainerConfig::of(config);
        trainer::start(config, self.instructions, &parameters.values, self.threads)
            .map_err(LearnError::Thread)
    }
}

impl Fixed {
    fn start(self, config: &LearnerConfig, tokens: CorpusTokens) -> NetworkLearner {
        NetworkLearner::start(config, tokens, None, &self).expect("a learner")
    }

    fn resume(self, config: &LearnerConfig, state: LearnerState) -> NetworkLearner {
        NetworkLearner::resume(config, tokens(), state, &self).expect("a learner")
    }
}

fn float32(threads: usize) -> Fixed {
    Fixed {
        instructions: Instructions::Float32(FloatKernels::best()),
        threads,
    }
}

fn tokens() -> CorpusTokens {
    (0..170u32).map(|i| (i * i + i / 5) % 9).collect()
}

fn run(learner: &mut NetworkLearner, steps: usize) -> Vec<StepOutcome> {
    (0..steps)
        .map(|_| learner.step().expect("a step"))
        .collect()
}

#[test]
fn a_stopped_and_resumed_training_continues_bit_for_bit_with_all_instructions() {
    for instructions in Instructions::available() {
        let fixed = |threads| Fixed {
            instructions,
            threads,
        };
        for config in [config(), config_with_techniques()] {
            let mut uninterrupted = fixed(2).start(&config, tokens());
            let expected = run(&mut uninterrupted, 10);
            for stop in [1, 4, 6] {
                let mut first = fixed(2).start(&config, tokens());
                let mut outcomes = run(&mut first, stop);
                let state = first.state().expect("a state");
                drop(first);
                // On another number of threads.
                let mut second = fixed(1).resume(&config, state);
                outcomes.extend(run(&mut second, 10 - stop));
                assert_eq!(
                    outcomes, expected,
                    "{instructions:?}, stopped after {stop} steps"
                );
                assert_eq!(
                    second.state().expect("a state"),
                    uninterrupted.state().expect("a state")
                );
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit_whether_they_share_rows_or_not() {
    // Threads have rows of their own if there are 16 for each.
    for (batch_size, hidden_size) in [(5, 70), (34, 20)] {
        let mut config = config_with_techniques();
        config.batch_size = batch_size;
        config.architecture.hidden_size = hidden_size;
        let tokens: CorpusTokens = (0..2000u32).map(|i| (i * i + i / 5) % 9).collect();
        for instructions in Instructions::available() {
            let result = |threads| {
                let mut learner = Fixed {
                    instructions,
                    threads,
                }
                .start(&config, tokens.clone());
                (run(&mut learner, 5), learner.state().expect("a state"))
            };
            let expected = result(1);
            for threads in [2, 3, 4] {
                assert!(
                    result(threads) == expected,
                    "{instructions:?}, {threads} threads"
                );
            }
        }
    }
}

#[test]
fn the_gradient_under_all_kinds_of_dropout_is_the_slope_of_the_loss() {
    let config = config_with_techniques();
    let initial = config
        .optimizer
        .initial
        .parameters(config.architecture, config.seed);
    let batch: Vec<u32> = (0..40u32).map(|i| (i * i + i / 3) % 9).collect();
    let targets: Vec<u32> = batch.iter().map(|token| (token + 1) % 9).collect();
    let step = |values: &[f32]| {
        let parameters = Parameters {
            architecture: config.architecture,
            values: values.to_vec(),
        };
        let mut trainer = float32(2).trainer(&config, &parameters).expect("threads");
        let step = trainer
            .step(StepInput {
                inputs: &batch,
                targets: &targets,
                reset_state: true,
                key: 3,
                step: 1,
                learning_rate: 0.0,
            })
            .expect("a step");
        (step.loss, trainer.gradient().expect("a gradient"))
    };
    let (_, gradient) = step(&initial.values);
    const STEP: f32 = 1e-2;
    let mut moved = 0;
    for view in layout(&config.architecture) {
        // The largest of each part, and one more.
        let values = &gradient[view.range.clone()];
        let largest = (0..values.len())
            .max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()))
            .expect("a parameter");
        for index in [largest, values.len() / 2] {
            let index = view.range.start + index;
            let loss_at = |offset: f32| {
                let mut values = initial.values.clone();
                values[index] += offset;
                step(&values).0
            };
            let slope = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * f64::from(STEP));
            let ours = f64::from(gradient[index]);
            assert!(
                (slope - ours).abs() < 1e-4 + 2e-2 * ours.abs(),
                "{}: {slope} {ours}",
                view.name
            );
            moved += usize::from(ours.abs() > 1e-3);
        }
    }
    assert!(moved > 8, "{moved} gradients are not zero");
}

#[test]
fn the_average_follows_the_parameters() {
    let config = config_with_techniques();
    let mut learner = float32(2).start(&config, tokens());
    let mut expected = learner.parameters().expect("parameters").values;
    for _ in 0..6 {
        learner.step().expect("a step");
        let now = learner.parameters().expect("parameters").values;
        for (average, value) in expected.iter_mut().zip(now) {
            *average = 0.9 * *average + 0.1 * value;
        }
        let ours = learner
            .average()
            .expect("an average")
            .expect("it is on")
            .values;
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!((ours - expected).abs() < 1e-6, "{ours} {expected}");
        }
    }
    let without = float32(1).start(&self::config(), tokens()).average();
    assert_eq!(without.expect("no error"), None);
}

#[test]
fn bfloat16_is_the_same_training_up_to_rounding_with_all_instructions() {
    let mut losses = Vec::new();
    for instructions in Instructions::available() {
        let fixed = Fixed {
            instructions,
            threads: 2,
        };
        let outcomes = run(&mut fixed.start(&config(), tokens()), 12);
        losses.push(
            outcomes
                .iter()
                .map(|outcome| outcome.loss)
                .collect::<Vec<_>>(),
        );
    }
    for other in &losses[1..] {
        for (a, b) in losses[0].iter().zip(other) {
            assert!((a - b).abs() < 0.01, "{losses:?}");
        }
    }
}

#[test]
fn the_loss_falls_on_a_predictable_text() {
    let tokens: CorpusTokens = (0..2000u32).map(|i| i % 9).collect();
    let mut learner = float32(2).start(&config(), tokens.clone());
    let outcomes = run(&mut learner, 150);
    assert!(outcomes[0].loss > 2.0, "{:?}", outcomes[0]);
    // One target in eight is wrapped around and not predictable.
    let parameters = learner.parameters().expect("parameters");
    let loss = learner.evaluate(&parameters, &tokens).expect("a loss");
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
    let fixed = float32(1);
    let state = fixed.start(&config(), tokens()).state().expect("a state");
    let rejection = |state| {
        let resumed = NetworkLearner::resume(&config(), tokens(), state, &fixed);
        resumed.err().expect("rejected").to_string()
    };
    let mut shorter = state.clone();
    shorter.parameters.pop();
    assert!(rejection(shorter).contains("parameters"));
    let mut averaged = state;
    averaged.average.push(0.0);
    assert!(rejection(averaged).contains("average"));
}

#[test]
fn a_token_outside_the_vocabulary_ends_the_training_with_an_error() {
    let tokens: CorpusTokens = (0..170u32).map(|i| i % 10).collect();
    let mut learner = float32(3).start(&config(), tokens);
    for _ in 0..2 {
        let error = learner.step().expect_err("token 9 is unknown");
        assert!(matches!(error, LearnError::Panicked), "{error}");
    }
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

/// Asserts that two vectors differ by at most `tolerance` of their norm.
fn assert_close(what: &str, ours: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut ours.iter().zip(expected).map(|(a, b)| f64::from(*a) - b));
    let size = norm(&mut expected.iter().copied());
    assert!(
        difference <= tolerance * size,
        "{what}: {difference} of {size}"
    );
}

#[test]
fn losses_gradients_and_parameters_match_those_of_the_notebook_in_pytorch() {
    let golden: Golden =
        serde_json::from_str(include_str!("../../../../tests/golden/notebook.json"))
            .expect("the golden file");
    for case in &golden.cases {
        assert_matches_pytorch(
            &golden,
            case,
            Instructions::Float32(FloatKernels::Portable),
            1e-4,
        );
        for precision in [TrainingPrecision::Float32, TrainingPrecision::Bf16] {
            let tolerance = match precision {
                TrainingPrecision::Float32 => 1e-4,
                TrainingPrecision::Bf16 => 3e-2,
            };
            let instructions = Instructions::choose(precision, FloatKernels::best());
            assert_matches_pytorch(&golden, case, instructions, tolerance);
        }
    }
}

/// Takes the steps of a case and compares everything that PyTorch reported.
fn assert_matches_pytorch(
    golden: &Golden,
    case: &Case,
    instructions: Instructions,
    tolerance: f64,
) {
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
        techniques: Techniques::default(),
        precision: TrainingPrecision::Float32,
    };
    let tokens = (0..case.token_count)
        .map(|i| ((7 * i * i + 3 * i) % golden.vocabulary_size) as u32)
        .collect();
    let fixed = Fixed {
        instructions,
        threads: 2,
    };
    let mut learner =
        NetworkLearner::start(&config, tokens, Some(initial), &fixed).expect("a learner");
    for (index, step) in case.steps.iter().enumerate() {
        let outcome = learner.step().expect("a step");
        assert!(
            (outcome.loss / step.loss - 1.0).abs() < tolerance,
            "{}",
            case.name
        );
        assert!((outcome.gradient_norm / step.gradient_norm - 1.0).abs() < tolerance);
        if index == 0 {
            let gradient = learner.trainer.gradient().expect("a gradient");
            for view in layout(&architecture) {
                let expected = &case.first_gradients[&view.name];
                assert_close(&view.name, &gradient[view.range], expected, tolerance);
            }
        }
    }
    let parameters = learner.parameters().expect("parameters");
    for view in layout(&architecture) {
        let ours = &parameters.values[view.range.clone()];
        assert_close(
            &view.name,
            ours,
            &case.last_parameters[&view.name],
            tolerance,
        );
    }
    let weights = Arc::new(DecodeWeights::on_processor(&parameters));
    let mut batch = DecodeBatch::new(weights.clone(), 1).expect("a batch");
    let mut state = weights.zero_state();
    let logits = batch
        .prefill_logits(&mut state, &case.evaluation.tokens)
        .expect("logits");
    assert_close(
        "logits",
        &logits,
        &case.evaluation.logits.concat(),
        tolerance,
    );
}
