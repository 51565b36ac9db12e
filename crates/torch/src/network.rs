//! The network as libtorch's own LSTM with its automatic gradients: the way
//! it is trained on a GPU (cuDNN), and what the written-out pass is checked
//! against.

use tch::{Device, IndexOp, Kind, TchError, Tensor};

use super::shared_slices::ParameterViews;
use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::Parameters;

/// Parameters on a device, with gradients.
pub(super) struct CharLstm {
    architecture: Architecture,
    flat: Tensor,
}

/// h and c of every layer, each `[1, rows, hidden]`.
pub(super) type TorchState = Vec<[Tensor; 2]>;

impl CharLstm {
    /// Copies the parameters to the device.
    pub(super) fn new(parameters: &Parameters, device: Device) -> Result<Self, TchError> {
        let flat = Tensor::f_from_slice(&parameters.values)?.f_to_device(device)?;
        Ok(Self {
            architecture: parameters.architecture,
            flat: flat.f_set_requires_grad(true)?,
        })
    }

    /// A state of zeros.
    pub(super) fn zero_state(&self, rows: usize) -> Result<TorchState, TchError> {
        let shape = [1, rows as i64, self.architecture.hidden_size as i64];
        let zeros = || Tensor::f_zeros(shape, (Kind::Float, self.flat.device()));
        (0..self.architecture.num_layers)
            .map(|_| Ok([zeros()?, zeros()?]))
            .collect()
    }

    /// Replaces the parameters.
    pub(super) fn set_parameters(&mut self, values: &[f32]) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        self.flat.f_copy_(&Tensor::f_from_slice(values)?)
    }

    /// Mean loss of `inputs` against `targets` (both `[time, rows]`) in nats
    /// per character, and its gradient in the order of the parameters. `drop`
    /// is applied to what each layer, by its number, sends up (`[time, rows,
    /// hidden]`). The state is replaced by the one after, cut from the graph.
    pub(super) fn gradients(
        &mut self,
        inputs: &Tensor,
        targets: &Tensor,
        state: &mut TorchState,
        drop: impl Fn(usize, Tensor) -> Result<Tensor, TchError>,
    ) -> Result<(f64, Vec<f32>), TchError> {
        let views = ParameterViews::of(&self.architecture, &self.flat)?;
        let vocabulary = self.architecture.vocabulary_size as i64;
        let mut x = inputs.f_one_hot(vocabulary)?.f_to_kind(Kind::Float)?;
        for (index, (layer, state)) in views.layers.iter().zip(state.iter_mut()).enumerate() {
            let weights = [
                &layer.weight_ih,
                &layer.weight_hh,
                &layer.bias_ih,
                &layer.bias_hh,
            ];
            let [h, c] = &*state;
            let (output, h, c) = x.f_lstm(&[h, c], &weights, true, 1, 0.0, true, false, false)?;
            *state = [h.f_detach()?, c.f_detach()?];
            x = drop(index, output)?;
        }
        let logits = x.f_linear(&views.fc_weight, Some(&views.fc_bias))?;
        let loss = logits
            .f_view([-1, vocabulary])?
            .f_cross_entropy_loss::<Tensor>(
                &targets.f_view([-1])?,
                None,
                tch::Reduction::Mean,
                -100,
                0.0,
            )?;
        self.flat.zero_grad();
        loss.f_backward()?;
        let gradient = self.flat.grad().f_to_device(Device::Cpu)?;
        let mut values = vec![0.0; gradient.numel()];
        gradient.f_copy_data(&mut values, gradient.numel())?;
        Ok((loss.f_double_value(&[])?, values))
    }

    /// Where it computes.
    pub(super) fn device(&self) -> Device {
        self.flat.device()
    }
}

/// The state as numbers, `[rows, layers, 2, hidden]`.
pub(super) fn state_to_numbers(state: &TorchState) -> Result<Vec<f32>, TchError> {
    let rows = state.first().map_or(0, |[h, _]| h.size()[1]);
    let mut numbers = Vec::new();
    for row in 0..rows {
        for tensor in state.iter().flatten() {
            let part = tensor.f_i((0, row))?.f_to_device(Device::Cpu)?;
            numbers.extend(Vec::<f32>::try_from(&part)?);
        }
    }
    Ok(numbers)
}

/// The inverse of [`state_to_numbers`], into a state of the same shape.
pub(super) fn numbers_to_state(numbers: &[f32], state: &mut TorchState) -> Result<(), TchError> {
    let _guard = tch::no_grad_guard();
    let Some([rows, hidden]) = state.first().map(|[h, _]| [h.size()[1], h.size()[2]]) else {
        return Ok(());
    };
    let mut parts = numbers.chunks_exact(hidden as usize);
    for row in 0..rows {
        for tensor in state.iter_mut().flatten() {
            let part = parts.next().expect("h and c of every row and layer");
            tensor
                .f_i((0, row))?
                .f_copy_(&Tensor::f_from_slice(part)?)?;
        }
    }
    Ok(())
}
