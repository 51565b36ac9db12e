//! The network as libtorch's own LSTM with automatic differentiation: training
//! on a GPU (cuDNN), and the reference in the tests of `bptt`.

use tch::{Device, Kind, Reduction, TchError, Tensor};

use super::named_parameters::NamedParameters;
use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::Parameters;

/// What is dropped in training.
pub(super) trait Drops {
    /// Sets some of the one-hot inputs, `[time, rows, vocabulary]`, to zero and
    /// scales the others.
    ///
    /// # Errors
    /// libtorch failed.
    fn inputs(&self, one_hot: Tensor) -> Result<Tensor, TchError>;

    /// Returns the factors of the recurrent weights of a layer, `[4 hidden,
    /// hidden]`; `None`: none are dropped.
    ///
    /// # Errors
    /// libtorch failed.
    fn recurrent(&self, layer: usize, weight: &Tensor) -> Result<Option<Tensor>, TchError>;

    /// As [`Self::inputs`], for the output of a layer, `[time, rows, hidden]`.
    ///
    /// # Errors
    /// libtorch failed.
    fn output(&self, layer: usize, output: Tensor) -> Result<Tensor, TchError>;
}

/// Drops nothing.
pub(super) struct NoDrops;

impl Drops for NoDrops {
    fn inputs(&self, one_hot: Tensor) -> Result<Tensor, TchError> {
        Ok(one_hot)
    }

    fn recurrent(&self, _layer: usize, _weight: &Tensor) -> Result<Option<Tensor>, TchError> {
        Ok(None)
    }

    fn output(&self, _layer: usize, output: Tensor) -> Result<Tensor, TchError> {
        Ok(output)
    }
}

/// Parameters on a device, with gradients.
pub(super) struct AutogradNetwork {
    architecture: Architecture,
    /// All parameters, in the order of `charlstm_model::parameters::layout`.
    flat: Tensor,
    /// Views of them.
    parameters: NamedParameters<Tensor>,
    /// What the layers compute with in a batch: copies of the parameters, some of
    /// them dropped. On a GPU, those of a layer are one chunk of memory in the
    /// order of cuDNN, which otherwise copies them in each step, with a warning.
    leaves: NamedParameters<Tensor>,
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
        let architecture = parameters.architecture;
        Ok(Self {
            parameters: NamedParameters::tensors(&architecture, &flat)?,
            leaves: leaves(&architecture, &flat)?,
            architecture,
            flat,
        })
    }

    /// Returns all parameters, in the order of `charlstm_model::parameters::layout`.
    pub(super) fn flat(&mut self) -> &mut Tensor {
        &mut self.flat
    }

    /// Copies the parameters to the leaves, and drops some. Returns the factors of
    /// the recurrent weights of each layer.
    fn copy_to_leaves(&mut self, drops: &dyn Drops) -> Result<Vec<Option<Tensor>>, TchError> {
        let _guard = tch::no_grad_guard();
        for (leaf, parameter) in self.leaves.all_mut().zip(self.parameters.all()) {
            leaf.f_copy_(parameter)?;
        }
        let layers = self.leaves.layers.iter_mut().enumerate();
        layers
            .map(|(index, layer)| {
                let factors = drops.recurrent(index, &layer.weight_hh)?;
                if let Some(factors) = &factors {
                    let _ = layer.weight_hh.f_mul_(factors)?;
                }
                Ok(factors)
            })
            .collect()
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

    /// Returns the logits after each of `inputs` (token ids, `[time, rows]`), as
    /// `[time, rows, vocabulary]`. `state` is replaced by the state after the last
    /// character, cut from the graph. The leaves must be up to date.
    fn forward(
        &self,
        inputs: &Tensor,
        state: &mut DeviceState,
        drops: &dyn Drops,
        train: bool,
    ) -> Result<Tensor, TchError> {
        let vocabulary = self.architecture.vocabulary_size as i64;
        let one_hot = inputs.f_one_hot(vocabulary)?.f_to_kind(Kind::Float)?;
        let mut x = drops.inputs(one_hot)?;
        let layers = self.leaves.layers.iter().zip(state.iter_mut());
        for (index, (layer, state)) in layers.enumerate() {
            let [h, c] = &*state;
            let (output, h, c) =
                x.f_lstm(&[h, c], &layer.all(), true, 1, 0.0, train, false, false)?;
            *state = [h.f_detach()?, c.f_detach()?];
            x = drops.output(index, output)?;
        }
        x.f_linear(&self.leaves.fc_weight, Some(&self.leaves.fc_bias))
    }

    /// Returns the mean loss of `inputs` against `targets` (token ids, both
    /// `[time, rows]`), in nats per character, on the device; writes its gradient to
    /// `gradient`, in the order of the parameters. `state` is replaced by the state
    /// after the last character. Does not wait for the device.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn gradient(
        &mut self,
        inputs: &Tensor,
        targets: &Tensor,
        state: &mut DeviceState,
        drops: &dyn Drops,
        gradient: &Tensor,
    ) -> Result<Tensor, TchError> {
        let dropped = self.copy_to_leaves(drops)?;
        let logits = self.forward(inputs, state, drops, true)?;
        let mean_loss = loss_of(&logits, targets, Reduction::Mean)?;
        let leaves: Vec<&Tensor> = self.leaves.all().collect();
        let gradients = Tensor::f_run_backward(&[&mean_loss], &leaves, false, false)?;
        let _guard = tch::no_grad_guard();
        let mut gradients =
            NamedParameters::assign(&self.architecture, gradients.into_iter().map(Ok))?;
        for (layer, factors) in gradients.layers.iter_mut().zip(&dropped) {
            if let Some(factors) = factors {
                layer.weight_hh = layer.weight_hh.f_mul(factors)?;
            }
        }
        let parts: Result<Vec<Tensor>, TchError> =
            gradients.all().map(|part| part.f_reshape([-1])).collect();
        let _ = Tensor::f_cat_out(gradient, &parts?, 0)?;
        mean_loss.f_detach()
    }

    /// Returns the summed loss of `inputs` against `targets`, without dropout, as
    /// a float64 on the device; targets of [`NOT_COUNTED`] are left out. `state`
    /// is replaced as by [`Self::gradient`].
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn loss(
        &mut self,
        inputs: &Tensor,
        targets: &Tensor,
        state: &mut DeviceState,
    ) -> Result<Tensor, TchError> {
        let _guard = tch::no_grad_guard();
        self.copy_to_leaves(&NoDrops)?;
        let logits = self.forward(inputs, state, &NoDrops, false)?;
        loss_of(&logits, targets, Reduction::Sum)?.f_to_kind(Kind::Double)
    }

    /// Returns handles to the same tensors.
    #[cfg(test)]
    pub(super) fn shallow_clone(&self) -> Self {
        let handles = |named: &NamedParameters<Tensor>| {
            let tensors = named.all().map(|tensor| Ok(tensor.shallow_clone()));
            NamedParameters::assign(&self.architecture, tensors).expect("the same number")
        };
        Self {
            architecture: self.architecture,
            flat: self.flat.shallow_clone(),
            parameters: handles(&self.parameters),
            leaves: handles(&self.leaves),
        }
    }

    /// Returns the device of the parameters.
    pub(super) fn device(&self) -> Device {
        self.flat.device()
    }
}

/// A target whose loss does not count.
pub(super) const NOT_COUNTED: i64 = -100;

fn loss_of(logits: &Tensor, targets: &Tensor, reduction: Reduction) -> Result<Tensor, TchError> {
    let (_, _, vocabulary) = logits.size3()?;
    logits
        .f_view([-1, vocabulary])?
        .f_cross_entropy_loss::<Tensor>(&targets.f_view([-1])?, None, reduction, NOT_COUNTED, 0.0)
}

/// The mode of an LSTM in cuDNN.
const CUDNN_LSTM: i64 = 2;

/// Returns copies of all parameters, which have gradients.
fn leaves(architecture: &Architecture, flat: &Tensor) -> Result<NamedParameters<Tensor>, TchError> {
    let _guard = tch::no_grad_guard();
    let mut leaves = NamedParameters::tensors(architecture, flat)?;
    for leaf in leaves.all_mut() {
        *leaf = leaf.f_detach_copy()?;
    }
    if flat.device().is_cuda() && Tensor::f_internal_use_cudnn_rnn_flatten_weight()? {
        for layer in &leaves.layers {
            let (_, inputs) = layer.weight_ih.size2()?;
            let (_, hidden) = layer.weight_hh.size2()?;
            // Makes the weights views of the buffer that it returns.
            let _buffer = Tensor::f_internal_cudnn_rnn_flatten_weight(
                &layer.all(),
                layer.all().len() as i64,
                inputs,
                CUDNN_LSTM,
                hidden,
                0,
                1,
                false,
                false,
            )?;
        }
    }
    for leaf in leaves.all_mut() {
        *leaf = leaf.f_set_requires_grad(true)?;
    }
    Ok(leaves)
}

/// Copies hidden states from the device, as `[rows, layers, 2, hidden]`.
///
/// # Errors
/// libtorch failed.
pub(super) fn read_state(state: &DeviceState) -> Result<Vec<f32>, TchError> {
    let parts: Vec<&Tensor> = state.iter().flatten().collect();
    if parts.is_empty() {
        return Ok(Vec::new());
    }
    to_host(&Tensor::f_cat(&parts, 0)?.f_transpose(0, 1)?)
}

/// Copies hidden states to the device, in the layout of [`read_state`].
///
/// # Errors
/// libtorch failed, for example because there are not as many values as `state`
/// holds.
pub(super) fn write_state(values: &[f32], state: &mut DeviceState) -> Result<(), TchError> {
    let _guard = tch::no_grad_guard();
    let Some(shape) = state.first().map(|[h, _]| h.size()) else {
        return Ok(());
    };
    let parts = Tensor::f_from_slice(values)?
        .f_view([shape[1], 2 * state.len() as i64, shape[2]])?
        .f_transpose(0, 1)?;
    for (part, tensor) in state.iter_mut().flatten().enumerate() {
        tensor.f_copy_(&parts.f_narrow(0, part as i64, 1)?)?;
    }
    Ok(())
}

/// Copies a tensor to main memory. Waits for the device.
///
/// # Errors
/// libtorch failed.
pub(super) fn to_host(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}
