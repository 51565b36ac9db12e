//! The network as libtorch's own LSTM with automatic differentiation: training
//! on a GPU (cuDNN), and the reference in the tests of `bptt`.

use tch::{Device, IndexOp, Kind, TchError, Tensor};

use super::named_parameters::NamedParameters;
use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::Parameters;

/// What is dropped in training: each method returns its tensor with some values
/// set to zero and the others scaled.
pub(super) trait Drops {
    /// Applied to the one-hot inputs, `[time, rows, vocabulary]`.
    ///
    /// # Errors
    /// libtorch failed.
    fn inputs(&self, one_hot: Tensor) -> Result<Tensor, TchError>;

    /// Applied to the recurrent weights of a layer, `[4 hidden, hidden]`.
    ///
    /// # Errors
    /// libtorch failed.
    fn recurrent(&self, layer: usize, weight: &Tensor) -> Result<Tensor, TchError>;

    /// Applied to the output of a layer, `[time, rows, hidden]`.
    ///
    /// # Errors
    /// libtorch failed.
    fn output(&self, layer: usize, output: Tensor) -> Result<Tensor, TchError>;
}

/// Parameters on a device, with gradients.
pub(super) struct AutogradNetwork {
    architecture: Architecture,
    /// All parameters, in the order of `charlstm_model::parameters::layout`.
    flat: Tensor,
}

/// h and c of every layer, each `[1, rows, hidden]`, on the device.
pub(super) type DeviceState = Vec<[Tensor; 2]>;

impl AutogradNetwork {
    /// Copies the parameters to the device.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn new(parameters: &Parameters, device: Device) -> Result<Self, TchError> {
        let flat = Tensor::f_from_slice(&parameters.values)?.f_to_device(device)?;
        Ok(Self {
            architecture: parameters.architecture,
            flat: flat.f_set_requires_grad(true)?,
        })
    }

    /// Returns hidden states of zero for `rows` sequences.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn zero_state(&self, rows: usize) -> Result<DeviceState, TchError> {
        let shape = [1, rows as i64, self.architecture.hidden_size as i64];
        let zeros = || Tensor::f_zeros(shape, (Kind::Float, self.flat.device()));
        (0..self.architecture.num_layers)
            .map(|_| Ok([zeros()?, zeros()?]))
            .collect()
    }

    /// Replaces the parameters.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn set_parameters(&mut self, values: &[f32]) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        self.flat.f_copy_(&Tensor::f_from_slice(values)?)
    }

    /// Returns the mean loss of `inputs` against `targets` (token ids, both
    /// `[time, rows]`) in nats per character, and its gradient in the order of
    /// the parameters. `state` is replaced by the state after the last character,
    /// cut from the graph.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn loss_and_gradient(
        &mut self,
        inputs: &Tensor,
        targets: &Tensor,
        state: &mut DeviceState,
        drops: &dyn Drops,
    ) -> Result<(f64, Vec<f32>), TchError> {
        let parameters = NamedParameters::tensors(&self.architecture, &self.flat)?;
        let vocabulary = self.architecture.vocabulary_size as i64;
        let one_hot = inputs.f_one_hot(vocabulary)?.f_to_kind(Kind::Float)?;
        let mut x = drops.inputs(one_hot)?;
        for (index, (layer, state)) in parameters.layers.iter().zip(state.iter_mut()).enumerate() {
            let weight_hh = drops.recurrent(index, &layer.weight_hh)?;
            let weights = [&layer.weight_ih, &weight_hh, &layer.bias_ih, &layer.bias_hh];
            let [h, c] = &*state;
            let (output, h, c) = x.f_lstm(&[h, c], &weights, true, 1, 0.0, true, false, false)?;
            *state = [h.f_detach()?, c.f_detach()?];
            x = drops.output(index, output)?;
        }
        let logits = x.f_linear(&parameters.fc_weight, Some(&parameters.fc_bias))?;
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

    /// Returns the device of the parameters.
    pub(super) fn device(&self) -> Device {
        self.flat.device()
    }
}

/// Copies hidden states from the device, as `[rows, layers, 2, hidden]`.
///
/// # Errors
/// libtorch failed.
pub(super) fn read_state(state: &DeviceState) -> Result<Vec<f32>, TchError> {
    let rows = state.first().map_or(0, |[h, _]| h.size()[1]);
    let mut values = Vec::new();
    for row in 0..rows {
        for tensor in state.iter().flatten() {
            let part = tensor.f_i((0, row))?.f_to_device(Device::Cpu)?;
            values.extend(Vec::<f32>::try_from(&part)?);
        }
    }
    Ok(values)
}

/// Copies hidden states to the device, in the layout of [`read_state`].
///
/// # Errors
/// libtorch failed.
///
/// # Panics
/// If there are fewer values than `state` holds.
pub(super) fn write_state(values: &[f32], state: &mut DeviceState) -> Result<(), TchError> {
    let _guard = tch::no_grad_guard();
    let Some([rows, hidden]) = state.first().map(|[h, _]| [h.size()[1], h.size()[2]]) else {
        return Ok(());
    };
    let mut parts = values.chunks_exact(hidden as usize);
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
