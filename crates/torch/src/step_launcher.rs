//! How the operations of a training step reach the device: one by one, or as one
//! recorded graph. A step of a small network has hundreds of operations, whose
//! launches take longer than they do themselves.

use std::error::Error;

use charlstm_bptt::trainer::{Step, StepInput};
use tch::TchError;

use super::device_step::{DeviceStep, Snapshot};
use super::process_state::seed_generator;

/// Steps before one is recorded: libraries allocate workspaces and choose algorithms
/// in the first ones.
const WARM_UP_STEPS: u32 = 3;

/// Records the operations of a step.
pub(super) trait Recorder {
    /// Records [`DeviceStep::run`] without computing anything. The operations of the
    /// calling thread must be allowed to draw random numbers.
    ///
    /// # Errors
    /// Something in the step cannot be recorded; the step can still be run.
    fn record(&self, step: &mut DeviceStep) -> Result<Box<dyn Recording>, TchError>;
}

/// A recorded step.
pub(super) trait Recording {
    /// Launches the step, which reads and writes the tensors of the recorded one.
    ///
    /// # Errors
    /// The device failed.
    fn replay(&mut self) -> Result<(), TchError>;
}

/// Launches steps.
pub(super) enum StepLauncher {
    /// One operation at a time, until the step is recorded after some more steps.
    WarmingUp {
        recorder: Box<dyn Recorder>,
        steps_left: u32,
    },
    /// As a graph.
    Recorded(Box<dyn Recording>),
    /// One operation at a time.
    Plain,
}

impl StepLauncher {
    /// Records steps once the device has warmed up.
    pub(super) fn recording(recorder: Box<dyn Recorder>) -> Self {
        Self::WarmingUp {
            recorder,
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
                recorder,
            } => {
                let before = step.snapshot().map_err(NotRecorded::Unrecordable);
                step.run()?;
                drop(generator);
                let recorded =
                    before.and_then(|before| record(&**recorder, step, input.key, &before));
                *self = match recorded {
                    Ok(recording) => {
                        tracing::info!("training steps run as one CUDA graph each");
                        Self::Recorded(recording)
                    }
                    Err(NotRecorded::Failed(error)) => return Err(error),
                    Err(reason) => Self::plain_because(&reason),
                };
                step.outcome()
            }
            Self::Recorded(recording) => {
                recording.replay()?;
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
enum NotRecorded {
    #[error("a step cannot be recorded: {0}")]
    Unrecordable(TchError),
    #[error("a recorded step cannot be replayed: {0}")]
    Unreplayable(TchError),
    #[error("a recorded step has another result than the same step before")]
    WrongResult,
    /// The device failed, and the training with it.
    #[error(transparent)]
    Failed(#[from] TchError),
}

/// Records the step that has just run from `before`, and replays it. Its result must
/// be the same, bit for bit; otherwise, that of the first run is restored.
fn record(
    recorder: &dyn Recorder,
    step: &mut DeviceStep,
    key: u64,
    before: &Snapshot,
) -> Result<Box<dyn Recording>, NotRecorded> {
    let expected = step.snapshot().map_err(NotRecorded::Unrecordable)?;
    let generator = seed_generator(key);
    let mut recording = recorder.record(step).map_err(NotRecorded::Unrecordable)?;
    drop(generator);
    step.restore(before)?;
    let generator = seed_generator(key);
    let replayed = recording.replay();
    let is_same = replayed.is_ok() && step.equals(&expected)?;
    drop(generator);
    if is_same {
        return Ok(recording);
    }
    step.restore(&expected)?;
    Err(replayed.map_or_else(NotRecorded::Unreplayable, |()| NotRecorded::WrongResult))
}

#[cfg(test)]
mod tests;
