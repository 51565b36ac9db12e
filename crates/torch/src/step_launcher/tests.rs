//! With libtorch's CPU, and captured steps that run the step again.

use charlstm_bptt::trainer::TrainerConfig;
use charlstm_model::architecture::Architecture;
use charlstm_model::initial::Initial;
use tch::Device;

use super::*;
use crate::autograd::to_host;
use crate::process_state::use_calling_thread_only;

/// What the replays of a captured step do.
#[derive(Clone, Copy, PartialEq)]
enum Replays {
    /// The step.
    Right,
    /// The step, and something else.
    Wrong,
    /// Fail.
    Failing,
}

/// Captures by keeping handles to the tensors of a step.
struct OnCpu(Replays);

struct Rerun {
    step: DeviceStep,
    replays: Replays,
}

impl Capture for OnCpu {
    fn capture(&self, step: &mut DeviceStep) -> Result<Box<dyn CapturedStep>, TchError> {
        Ok(Box::new(Rerun {
            step: step.shallow_clone(),
            replays: self.0,
        }))
    }
}

impl CapturedStep for Rerun {
    fn replay(&mut self) -> Result<(), TchError> {
        if self.replays == Replays::Failing {
            return Err(TchError::Torch("the graph is broken".to_owned()));
        }
        self.step.run()?;
        if self.replays == Replays::Wrong {
            let _guard = tch::no_grad_guard();
            let mut hidden = self.step.state[0][0].shallow_clone();
            let _ = hidden.f_mul_scalar_(1.0 + 1e-6)?;
        }
        Ok(())
    }
}

/// Cannot capture.
struct Unable;

impl Capture for Unable {
    fn capture(&self, _step: &mut DeviceStep) -> Result<Box<dyn CapturedStep>, TchError> {
        Err(TchError::Torch(
            "an operation waits for the device".to_owned(),
        ))
    }
}

/// Takes ten steps with every technique. Returns their outcomes, and everything that
/// they have changed.
fn run(launcher: &mut StepLauncher) -> (Vec<Step>, Vec<Vec<f32>>) {
    use_calling_thread_only();
    let config = TrainerConfig {
        architecture: Architecture {
            vocabulary_size: 9,
            hidden_size: 12,
            num_layers: 2,
        },
        batch_size: 5,
        sequence_length: 8,
        dropout: 0.3,
        locked_dropout: true,
        recurrent_dropout: 0.2,
        input_dropout: 0.1,
        beta2: 0.99,
        weight_decay: 0.01,
        clip_norm: 0.5,
        average_decay: Some(0.9),
    };
    let initial = Initial::Uniform.parameters(config.architecture, 3);
    let mut step = DeviceStep::new(config, &initial, Device::Cpu).expect("a step");
    let tokens: Vec<u32> = (0..81u32).map(|i| (i * i + i / 3) % 9).collect();
    let outcomes = (0..10)
        .map(|number: usize| {
            let input = StepInput {
                inputs: &tokens[number..number + 40],
                targets: &tokens[number + 1..number + 41],
                reset_state: number.is_multiple_of(4),
                key: number as u64,
                step: number as u64 + 1,
                learning_rate: 0.01 / (number + 1) as f64,
            };
            launcher.step(&mut step, &input).expect("an outcome")
        })
        .collect();
    let changed = step.changed();
    let changed = changed.iter().map(|tensor| to_host(&tensor.reshape([-1])));
    (outcomes, changed.collect::<Result<_, _>>().expect("values"))
}

#[test]
fn captured_steps_have_the_results_of_plain_ones_with_every_technique() {
    let expected = run(&mut StepLauncher::Plain);
    let mut launcher = StepLauncher::capturing(Box::new(OnCpu(Replays::Right)));
    assert_eq!(run(&mut launcher), expected);
    assert!(matches!(launcher, StepLauncher::Captured(_)));
    assert!(expected.0.iter().all(|step| step.loss.is_finite()));
}

#[test]
fn a_step_that_cannot_be_captured_or_replayed_has_the_results_of_a_plain_one() {
    let expected = run(&mut StepLauncher::Plain);
    let captures: [Box<dyn Capture>; 3] = [
        Box::new(Unable),
        Box::new(OnCpu(Replays::Wrong)),
        Box::new(OnCpu(Replays::Failing)),
    ];
    for capture in captures {
        let mut launcher = StepLauncher::capturing(capture);
        assert_eq!(run(&mut launcher), expected);
        assert!(matches!(launcher, StepLauncher::Plain));
    }
}
