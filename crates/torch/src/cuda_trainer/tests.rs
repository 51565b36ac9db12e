//! The trainer of a GPU, on libtorch's CPU.

use charlstm_bptt::instructions::Instructions;
use charlstm_bptt::trainer::{self, TrainerConfig};
use charlstm_model::architecture::Architecture;
use charlstm_model::evaluate;
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

fn with_every_technique() -> LearnerConfig {
    LearnerConfig {
        dropout: 0.3,
        techniques: Techniques {
            locked_dropout: true,
            recurrent_dropout: 0.2,
            input_dropout: 0.1,
            average_decay: Some(0.9),
        },
        ..config()
    }
}

fn initial(config: &LearnerConfig) -> Parameters {
    let initial = config.optimizer.initial;
    initial.parameters(config.architecture, config.seed)
}

fn on_libtorch(config: &LearnerConfig) -> CudaTrainer {
    use_calling_thread_only();
    CudaTrainer::new(config, &initial(config), Device::Cpu).expect("a trainer")
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
    let state = |trainer: &mut dyn Trainer| trainer.optimizer_state().expect("a state");
    let (ours, theirs) = (state(&mut on_libtorch), state(&mut *on_cpu));
    assert_close(&ours.parameters, &theirs.parameters);
    assert_close(&ours.first_moments, &theirs.first_moments);
    assert_close(&ours.second_moments, &theirs.second_moments);
    assert_close(&ours.average, &theirs.average);
    let gradient = |trainer: &mut dyn Trainer| trainer.gradient().expect("a gradient");
    assert_close(&gradient(&mut on_libtorch), &gradient(&mut *on_cpu));
}

#[test]
fn with_every_technique_a_resumed_run_is_that_of_an_uninterrupted_one() {
    let mut config = with_every_technique();
    let mut uninterrupted = on_libtorch(&config);
    let expected = run(&mut uninterrupted, 0..6);
    let mut first = on_libtorch(&config);
    assert_eq!(run(&mut first, 0..3), expected[..3]);
    let hidden = first.hidden().expect("a state");
    let state = first.optimizer_state().expect("a state");
    let mut second = on_libtorch(&config);
    second.set_optimizer_state(&state).expect("a trainer");
    second.set_hidden(&hidden).expect("a state");
    assert_eq!(run(&mut second, 3..6), expected[3..]);
    assert_eq!(
        second.optimizer_state().expect("a state"),
        uninterrupted.optimizer_state().expect("a state")
    );
    config.techniques.recurrent_dropout = 0.0;
    assert_ne!(run(&mut on_libtorch(&config), 0..6), expected);
}

#[test]
fn a_text_of_any_length_has_the_loss_that_the_cpu_computes() {
    let config = config();
    let parameters = initial(&config);
    let mut trainer = on_libtorch(&config);
    for len in [0, 1, 2, 3, 90, 101, 399, 401, 402, 1_000, 5_003, 60_001] {
        let tokens: Vec<u32> = (0..len)
            .map(|i: u32| (i % 1_000 * (i % 77) + i / 3) % 9)
            .collect();
        let tokens = CorpusTokens::from(&tokens[..]);
        let expected = evaluate::mean_loss(&parameters, &tokens, 2).expect("in memory");
        let loss = trainer.mean_loss(&parameters, &tokens).expect("a loss");
        assert!((loss - expected).abs() < 1e-5, "{len}: {loss} {expected}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn on_a_gpu_steps_are_captured() {
    let config = with_every_technique();
    let trainer = CudaTrainer::new(&config, &initial(&config), Device::Cuda(0));
    let mut captured = trainer.expect("a GPU");
    let losses = run(&mut captured, 0..10);
    assert!(matches!(captured.launcher, StepLauncher::Captured(_)));
    let trainer = CudaTrainer::new(&config, &initial(&config), Device::Cuda(0));
    let mut plain = trainer.expect("a GPU");
    plain.launcher = StepLauncher::Plain;
    assert_eq!(run(&mut plain, 0..10), losses);
    let state = |trainer: &mut CudaTrainer| trainer.optimizer_state().expect("a state");
    assert_eq!(state(&mut captured), state(&mut plain));
}
