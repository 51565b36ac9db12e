//! The trainer of a GPU, on libtorch's CPU.

use charlstm_bptt::instructions::Instructions;
use charlstm_bptt::trainer::{self, TrainerConfig};
use charlstm_model::architecture::Architecture;
use charlstm_model::kernels::FloatKernels;
use charlstm_model::learner::{Techniques, TrainingPrecision};
use charlstm_model::optimizer_config::OptimizerConfig;

use super::*;
use crate::process_state::use_calling_thread_only;

fn config() -> LearnerConfig {
    LearnerConfig {
        architecture: Architecture {
            vocabulary_size: 9,
            hidden_size: 12,
            num_layers: 2,
        },
        batch_size: 5,
        sequence_length: 8,
        epochs: 1,
        dropout: 0.0,
        learning_rate: 0.01,
        clip_norm: 0.5,
        seed: 7,
        optimizer: OptimizerConfig::FAST,
        techniques: Techniques {
            average_decay: Some(0.9),
            ..Techniques::default()
        },
        precision: TrainingPrecision::Float32,
    }
}

fn initial(config: &LearnerConfig) -> Parameters {
    let initial = config.optimizer.initial;
    initial.parameters(config.architecture, config.seed)
}

fn on_libtorch(config: &LearnerConfig) -> CudaTrainer {
    use_calling_thread_only();
    CudaTrainer::new(config, &initial(config), Device::Cpu, 2).expect("a trainer")
}

/// Takes some steps; returns the losses.
fn run(trainer: &mut dyn Trainer, steps: std::ops::Range<u64>) -> Vec<f64> {
    let tokens: Vec<u32> = (0..41u32).map(|i| (i * i + i / 3) % 9).collect();
    let step = |step| {
        let input = StepInput {
            inputs: &tokens[..40],
            targets: &tokens[1..],
            reset_state: step == 0,
            key: step,
            step: step + 1,
            learning_rate: 0.01,
        };
        trainer.step(input).expect("a step").loss
    };
    steps.map(step).collect()
}

fn assert_close(ours: &[f32], theirs: &[f32]) {
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    let largest = differences.fold(0.0, f32::max);
    assert!(largest < 1e-3, "{largest}");
}

#[test]
fn it_trains_as_the_cpu_does() {
    let config = config();
    let instructions = Instructions::Float32(FloatKernels::best());
    let values = initial(&config).values;
    let mut on_cpu =
        trainer::start(TrainerConfig::of(&config), instructions, &values, 2).expect("threads");
    let mut on_libtorch = on_libtorch(&config);
    let (expected, losses) = (run(&mut *on_cpu, 0..6), run(&mut on_libtorch, 0..6));
    for (expected, loss) in expected.iter().zip(&losses) {
        assert!((expected - loss).abs() < 1e-4, "{expected} {loss}");
    }
    let hidden = on_libtorch.hidden().expect("a state");
    assert_close(&hidden, &on_cpu.hidden().expect("a state"));
    let (ours, theirs) = (on_libtorch.optimizer_state(), on_cpu.optimizer_state());
    assert_close(ours.parameters, theirs.parameters);
    assert_close(ours.average, theirs.average);
}

#[test]
fn with_every_technique_a_resumed_run_is_that_of_an_uninterrupted_one() {
    let mut config = config();
    config.dropout = 0.3;
    config.techniques = Techniques {
        locked_dropout: true,
        recurrent_dropout: 0.2,
        input_dropout: 0.1,
        average_decay: Some(0.9),
    };
    let mut uninterrupted = on_libtorch(&config);
    let expected = run(&mut uninterrupted, 0..6);
    let mut first = on_libtorch(&config);
    assert_eq!(run(&mut first, 0..3), expected[..3]);
    let hidden = first.hidden().expect("a state");
    let state = first.optimizer_state();
    let parameters = Parameters {
        architecture: config.architecture,
        values: state.parameters.to_vec(),
    };
    let mut second = CudaTrainer::new(&config, &parameters, Device::Cpu, 1).expect("a trainer");
    let resumed = second.optimizer_state();
    resumed.first_moments.copy_from_slice(state.first_moments);
    resumed.second_moments.copy_from_slice(state.second_moments);
    resumed.average.copy_from_slice(state.average);
    second.set_hidden(&hidden).expect("a state");
    assert_eq!(run(&mut second, 3..6), expected[3..]);
    assert_eq!(
        second.optimizer_state().average,
        uninterrupted.optimizer_state().average
    );
    config.techniques.recurrent_dropout = 0.0;
    assert_ne!(run(&mut on_libtorch(&config), 0..6), expected);
}
