//! The loss of a text, computed on the device of a network.

use std::io;
use std::ops::Range;

use charlstm_model::evaluate::{WARM_UP_CHARS, segments};
use charlstm_model::learner::LearnError;
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;
use tch::{Device, Kind, TchError, Tensor};

use super::autograd::{AutogradNetwork, DeviceState, NOT_COUNTED};
use super::failed;

/// Maximum number of logits that are computed at a time: 64 MB of float32.
const MAX_LOGITS: usize = 1 << 24;

/// Returns the mean loss of `parameters` on a text, as
/// `charlstm_model::evaluate::mean_loss` defines it.
///
/// # Errors
/// The text could not be read, or libtorch failed.
pub(super) fn mean_loss(
    parameters: &Parameters,
    device: Device,
    tokens: &CorpusTokens,
) -> Result<f64, LearnError> {
    if tokens.len() < 2 {
        return Ok(0.0);
    }
    let segments = segments(tokens.len());
    let longest = segments.iter().map(Range::len).max().unwrap_or(0);
    let vocabulary = parameters.architecture.vocabulary_size;
    let most = (MAX_LOGITS / (segments.len() * vocabulary)).max(1);
    let mut evaluation =
        Evaluation::start(parameters, device, tokens, &segments).map_err(failed)?;
    for start in (0..WARM_UP_CHARS).step_by(most) {
        evaluation.steps(start..(start + most).min(WARM_UP_CHARS))?;
    }
    // There is no text before the first segment.
    evaluation.reset_first_row().map_err(failed)?;
    let end = WARM_UP_CHARS + longest;
    for start in (WARM_UP_CHARS..end).step_by(most) {
        evaluation.steps(start..(start + most).min(end))?;
    }
    let sum = evaluation.sum.f_double_value(&[0]).map_err(failed)?;
    Ok(sum / (tokens.len() - 1) as f64)
}

struct Evaluation<'a> {
    network: AutogradNetwork,
    tokens: &'a CorpusTokens,
    /// One row each.
    segments: &'a [Range<usize>],
    state: DeviceState,
    /// Of the losses so far, on the device.
    sum: Tensor,
}

impl<'a> Evaluation<'a> {
    /// Copies the parameters to the device.
    fn start(
        parameters: &Parameters,
        device: Device,
        tokens: &'a CorpusTokens,
        segments: &'a [Range<usize>],
    ) -> Result<Self, TchError> {
        let network = AutogradNetwork::new(parameters, device)?;
        Ok(Self {
            state: network.zero_state(segments.len())?,
            sum: Tensor::f_zeros([1], (Kind::Double, device))?,
            network,
            tokens,
            segments,
        })
    }

    /// Feeds the tokens of some steps to all rows. Step 0 is [`WARM_UP_CHARS`]
    /// before the segment of a row.
    fn steps(&mut self, steps: Range<usize>) -> Result<(), LearnError> {
        let rows = self.segments.len();
        // Read per row, and then transposed to [time, rows].
        let mut inputs = Vec::with_capacity(rows * steps.len());
        let mut targets = Vec::with_capacity(rows * steps.len());
        for segment in self.segments {
            let (row_inputs, row_targets) =
                row(self.tokens, segment, &steps).map_err(LearnError::Text)?;
            inputs.extend(row_inputs);
            targets.extend(row_targets);
        }
        self.add_losses(&inputs, &targets).map_err(failed)
    }

    fn add_losses(&mut self, inputs: &[i64], targets: &[i64]) -> Result<(), TchError> {
        let (rows, device) = (self.segments.len() as i64, self.network.device());
        let to_device = |values: &[i64]| {
            Tensor::f_from_slice(values)?
                .f_view([rows, -1])?
                .f_transpose(0, 1)?
                .f_contiguous()?
                .f_to_device(device)
        };
        let (inputs, targets) = (to_device(inputs)?, to_device(targets)?);
        let loss = self.network.loss(&inputs, &targets, &mut self.state)?;
        self.sum = self.sum.f_add(&loss)?;
        Ok(())
    }

    fn reset_first_row(&mut self) -> Result<(), TchError> {
        for tensor in self.state.iter_mut().flatten() {
            let _ = tensor.f_narrow(1, 0, 1)?.f_zero_()?;
        }
        Ok(())
    }
}

/// Returns the inputs and targets of one row. A step before the text or after the
/// segment has input 0, and the losses of the warm-up and after the segment do not
/// count.
fn row(
    tokens: &CorpusTokens,
    segment: &Range<usize>,
    steps: &Range<usize>,
) -> io::Result<(Vec<i64>, Vec<i64>)> {
    let position = |step: usize| (segment.start + step).checked_sub(WARM_UP_CHARS);
    let first = steps.clone().find_map(position).unwrap_or(segment.end);
    let last = position(steps.end).map_or(segment.end, |end| end.min(segment.end));
    // One more: the target of the last input.
    let mut read = vec![0; (last + 1).saturating_sub(first)];
    if first < last {
        tokens.read(first, &mut read)?;
    }
    let at = |position: usize| i64::from(read[position - first]);
    let values = steps.clone().map(|step| match position(step) {
        Some(position) if segment.contains(&position) => (at(position), at(position + 1)),
        Some(position) if position < segment.start => (at(position), NOT_COUNTED),
        _ => (0, NOT_COUNTED),
    });
    Ok(values.unzip())
}
