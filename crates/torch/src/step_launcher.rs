//! How the operations of a training step reach the device: one by one, or as one
//! captured graph. A step of a small network has hundreds of operations, whose
//! launches take longer than they do themselves.

use std::error::Error;

use charlstm_bptt::trainer::{Step, StepInput};
use tch::TchError;

use super::device_step::{DeviceStep, Snapshot};
use super::process_state::seed_generator;

/// Steps before one is captured: libraries allocate workspaces and choose algorithms
/// in the first ones.
const WARM_UP_STEPS: u32 = 3;

/// Captures the operations of a step.
pub(super) trait Capture {
    /// Captures [`DeviceStep::run`] without computing anything. The operations of the
    /// calling thread must be allowed to draw random numbers.
    ///
    /// # Errors
    /// Something in the step cannot be captured; the step can still be run.
    fn capture(&self, step: &mut DeviceStep) -> Result<Box<dyn CapturedStep>, TchError>;
}

/// A captured step.
pub(super) trait CapturedStep {
    /// Launches the step, which reads and writes the tensors of the captured one.
    ///
    /// # Errors
    /// The device failed.
    fn replay(&mut self) -> Result<(), TchError>;
}

/// Launches steps.
pub(super) enum StepLauncher {
    /// One operation at a time, until the step is captured after some more steps.
    WarmingUp {
        capture: Box<dyn Capture>,
        steps_left: u32,
    },
    /// As a graph.
    Captured(Box<dyn CapturedStep>),
    /// One operation at a time.
    Plain,
}

impl StepLauncher {
    /// Captures steps once the device has warmed up.
    pub(super) fn capturing(capture: Box<dyn Capture>) -> Self {
        Self::WarmingUp {
            capture,
            steps_left: WARM_UP_STEPS,
        }
    }

    /// Launches one operation at a time, and reports why.
    pub(super) fn plain_because(reason: &(dyn Error + 'static)) -> Self {
        tracing::warn!(
            reason,
            "training is slower: its steps do not run as CUDA graphs"
        );
        Self::Plain
    }

    /// Takes a step. Blocks until the device has finished.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn step(
        &mut self,
        step: &mut DeviceStep,
        input: &StepInput<'_>,
    ) -> Result<Step, TchError> {
        step.set_input(input)?;
        // Seeded in each step, so that a resumed training draws the same masks.
        let generator = seed_generator(input.key);
        match self {
            Self::WarmingUp {
                steps_left: 0,
                capture,
            } => {
                let before = step.snapshot().map_err(NotCaptured::Uncapturable);
                step.run()?;
                drop(generator);
                let captured = before
                    .and_then(|before| capture_and_check(&**capture, step, input.key, &before));
                *self = match captured {
                    Ok(captured_step) => {
                        tracing::info!("training steps run as one CUDA graph each");
                        Self::Captured(captured_step)
                    }
                    Err(NotCaptured::Failed(error)) => return Err(error),
                    Err(reason) => Self::plain_because(&reason),
                };
                step.outcome()
            }
            Self::Captured(captured_step) => {
                captured_step.replay()?;
                let outcome = step.outcome();
                // Not before the step has finished: it reads the seed from the device.
                drop(generator);
                outcome
            }
            Self::WarmingUp { .. } | Self::Plain => {
                step.run()?;
                drop(generator);
                if let Self::WarmingUp { steps_left, .. } = self {
                    *steps_left -= 1;
                }
                step.outcome()
            }
        }
    }
}

/// Why steps do not run as graphs.
#[derive(Debug, thiserror::Error)]
enum NotCaptured {
    #[error("a step cannot be captured: {0}")]
    Uncapturable(TchError),
    #[error("a captured step cannot be replayed: {0}")]
    Unreplayable(TchError),
    #[error("a captured step has a different result from the same step before")]
    WrongResult,
    /// The device failed, and the training with it.
    #[error(transparent)]
    Failed(#[from] TchError),
}

/// Captures the step that has just run from `before`, and replays it. Its result must
/// be the same, bit for bit; otherwise, that of the first run is restored.
fn capture_and_check(
    capture: &dyn Capture,
    step: &mut DeviceStep,
    key: u64,
    before: &Snapshot,
) -> Result<Box<dyn CapturedStep>, NotCaptured> {
    let expected = step.snapshot().map_err(NotCaptured::Uncapturable)?;
    let generator = seed_generator(key);
    let mut captured_step = capture.capture(step).map_err(NotCaptured::Uncapturable)?;
    drop(generator);
    step.restore(before)?;
    let generator = seed_generator(key);
    let replayed = captured_step.replay();
    let is_same = replayed.is_ok() && step.equals(&expected)?;
    drop(generator);
    if is_same {
        return Ok(captured_step);
    }
    step.restore(&expected)?;
    Err(replayed.map_or_else(NotCaptured::Unreplayable, |()| NotCaptured::WrongResult))
}

#[cfg(test)]
mod tests;
