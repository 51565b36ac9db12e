//! The decode step on a device of libtorch (a GPU).
//!
//! Every product has the same shape, `max_rows` rows, however many are in use:
//! a matrix library selects its kernel by the shape, and kernels differ in the
//! last bits. With one shape, a row does not depend on the other rows. For the
//! same reason, prefill steps a single row character by character.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::check::MAX_ROWS;
use charlstm_model::decode_step::{
    Arithmetic, BatchBackend, DecodeDevice, DecodeError, DecodeWeights, HiddenState, WeightLayout,
};
use charlstm_model::device::Device as ModelDevice;
use charlstm_model::parameters::Parameters;

use super::device::torch_device;
use super::named_parameters::NamedParameters;

fn decode_error(error: TchError) -> DecodeError {
    DecodeError(Box::new(error))
}

/// Generates on a device of libtorch. Every step computes `max_rows` rows.
#[derive(Clone, Copy, Debug)]
pub struct TorchDevice {
    /// The device.
    pub device: ModelDevice,
    /// Maximum number of rows in a batch.
    pub max_rows: usize,
}

impl DecodeDevice for TorchDevice {
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        let rows = self.max_rows.max(MAX_ROWS);
        let weights = TorchWeights::new(parameters, torch_device(self.device), rows);
        let layout = Box::new(weights.map_err(decode_error)?);
        Ok(DecodeWeights::new(parameters.architecture, layout))
    }
}

/// The weights of a network on a device, transposed, and the number of rows of
/// all products.
#[derive(Debug)]
struct TorchWeights {
    architecture: Architecture,
    device: Device,
    rows: usize,
    /// A `Tensor` can be sent to another thread but not shared; each batch
    /// takes handles of its own.
    network: Mutex<DeviceNetwork>,
}

/// Weights on a device. They are never written to, so that several threads can
/// compute with handles on the same memory.
#[derive(Debug)]
struct DeviceNetwork {
    layers: Vec<DeviceLayer>,
    /// `[hidden, vocabulary]`.
    output: Tensor,
    /// `[vocabulary]`.
    output_bias: Tensor,
}

#[derive(Debug)]
struct DeviceLayer {
    /// In the first layer `[vocabulary, 4 hidden]`: a row for each token, with
    /// both biases added (the product with a one-hot vector is a row). In
    /// other layers `[hidden, 4 hidden]`.
    input: Tensor,
    /// The sum of both biases, `[4 hidden]`. Not used in the first layer.
    bias: Tensor,
    /// `[hidden, 4 hidden]`.
    recurrent: Tensor,
}

impl TorchWeights {
    /// Copies the weights to `device`, for products of `rows` rows.
    fn new(parameters: &Parameters, device: Device, rows: usize) -> Result<Self, TchError> {
        let _guard = tch::no_grad_guard();
        let flat = Tensor::f_from_slice(&parameters.values)?.f_to_device(device)?;
        let named = NamedParameters::tensors(&parameters.architecture, &flat)?;
        let layers = named.layers.iter().enumerate().map(|(index, layer)| {
            let bias = layer.bias_ih.f_add(&layer.bias_hh)?;
            let input = layer.weight_ih.f_tr()?;
            let input = if index == 0 {
                input.f_add(&bias)?
            } else {
                input
            };
            Ok(DeviceLayer {
                input: input.f_contiguous()?,
                bias,
                recurrent: layer.weight_hh.f_tr()?.f_contiguous()?,
            })
        });
        let network = DeviceNetwork {
            layers: layers.collect::<Result<_, TchError>>()?,
            output: named.fc_weight.f_tr()?.f_contiguous()?,
            output_bias: named.fc_bias.f_detach_copy()?,
        };
        Ok(Self {
            architecture: parameters.architecture,
            device,
            rows,
            network: Mutex::new(network),
        })
    }

    /// Returns new handles on the weights, for another thread.
    fn handles(&self) -> DeviceNetwork {
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        DeviceNetwork {
            layers: network
                .layers
                .iter()
                .map(|layer| DeviceLayer {
                    input: layer.input.shallow_clone(),
                    bias: layer.bias.shallow_clone(),
                    recurrent: layer.recurrent.shallow_clone(),
                })
                .collect(),
            output: network.output.shallow_clone(),
            output_bias: network.output_bias.shallow_clone(),
        }
    }
}

/// h and c of one layer, `[rows, hidden]` each.
struct DeviceLayerState {
    h: Tensor,
    c: Tensor,
}

/// The states of a batch on a device.
struct TorchBatch {
    architecture: Architecture,
    device: Device,
    /// Rows of every product.
    rows: usize,
    network: DeviceNetwork,
    layers: Vec<DeviceLayerState>,
    /// Row 0 is the sequence that is being prefilled; the others are unused.
    prefill_layers: Vec<DeviceLayerState>,
    /// `[rows, vocabulary]`, in main memory.
    logits: Vec<f32>,
    /// One token id for each row; unused rows keep an old one.
    tokens: Vec<i64>,
}

impl TorchBatch {
    /// Allocates the states of `max_rows` rows.
    ///
    /// # Panics
    /// If the weights were prepared for fewer rows.
    fn new(weights: &TorchWeights, max_rows: usize) -> Result<Self, TchError> {
        let (rows, architecture) = (weights.rows, weights.architecture);
        assert!(max_rows <= rows, "{max_rows} rows, prepared for {rows}");
        let shape = [rows as i64, architecture.hidden_size as i64];
        let zeros = || Tensor::f_zeros(shape, (Kind::Float, weights.device));
        let states = || -> Result<Vec<DeviceLayerState>, TchError> {
            (0..architecture.num_layers)
                .map(|_| {
                    Ok(DeviceLayerState {
                        h: zeros()?,
                        c: zeros()?,
                    })
                })
                .collect()
        };
        Ok(Self {
            architecture,
            device: weights.device,
            rows,
            network: weights.handles(),
            layers: states()?,
            prefill_layers: states()?,
            logits: vec![0.0; rows * architecture.vocabulary_size],
            tokens: vec![0; rows],
        })
    }

    fn copy_row(&mut self, from: usize, to: usize) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        for layer in &mut self.layers {
            for tensor in [&layer.h, &layer.c] {
                row_of(tensor, to)?.f_copy_(&row_of(tensor, from)?)?;
            }
        }
        Ok(())
    }

    fn step_rows(&mut self, tokens: &[u32]) -> Result<&[f32], TchError> {
        let _guard = tch::no_grad_guard();
        for (slot, &token) in self.tokens.iter_mut().zip(tokens) {
            *slot = i64::from(token);
        }
        let device_tokens = Tensor::f_from_slice(&self.tokens)?.f_to_device(self.device)?;
        step_layers(&self.network, &mut self.layers, &device_tokens)?;
        let used = tokens.len() * self.architecture.vocabulary_size;
        let logits = logits_of(&self.network, &self.layers)?;
        copy_from_device(&logits, &mut self.logits)?;
        Ok(&self.logits[..used])
    }

    fn prefill_row(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        mut logits: Option<&mut Vec<f32>>,
    ) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        write_row(&mut self.prefill_layers, 0, state)?;
        // `[rows, characters]`: column k feeds character k to each row.
        let all: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let all = Tensor::f_from_slice(&all)?
            .f_to_device(self.device)?
            .f_unsqueeze(0)?
            .f_expand([self.rows as i64, -1], false)?;
        for position in 0..tokens.len() {
            let token = all.f_select(1, position as i64)?.f_contiguous()?;
            step_layers(&self.network, &mut self.prefill_layers, &token)?;
            if let Some(out) = logits.as_deref_mut() {
                let start = out.len();
                out.resize(start + self.architecture.vocabulary_size, 0.0);
                let row = row_of(&logits_of(&self.network, &self.prefill_layers)?, 0)?;
                copy_from_device(&row, &mut out[start..])?;
            }
        }
        *state = read_row(&self.prefill_layers, &self.architecture, 0)?;
        Ok(())
    }
}

impl BatchBackend for TorchBatch {
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), DecodeError> {
        write_row(&mut self.layers, row, state).map_err(decode_error)
    }

    fn read(&self, row: usize) -> Result<HiddenState, DecodeError> {
        read_row(&self.layers, &self.architecture, row).map_err(decode_error)
    }

    fn move_last(&mut self, from: usize, to: usize) -> Result<(), DecodeError> {
        self.copy_row(from, to).map_err(decode_error)
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError> {
        self.step_rows(tokens).map_err(decode_error)
    }

    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError> {
        self.prefill_row(state, tokens, logits)
            .map_err(decode_error)
    }
}

impl WeightLayout for TorchWeights {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::FLOAT32
    }

    fn bytes(&self) -> usize {
        self.architecture.parameter_count() * size_of::<f32>()
    }

    fn batch(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError> {
        Ok(Box::new(
            TorchBatch::new(self, max_rows).map_err(decode_error)?,
        ))
    }
}

/// Feeds one token to each row; `tokens` is `[rows]`.
fn step_layers(
    network: &DeviceNetwork,
    states: &mut [DeviceLayerState],
    tokens: &Tensor,
) -> Result<(), TchError> {
    let mut below: Option<Tensor> = None;
    for (layer, state) in network.layers.iter().zip(states) {
        let sums = match &below {
            None => layer.input.f_index_select(0, tokens)?,
            Some(below) => layer.bias.f_addmm(below, &layer.input)?,
        };
        let gates = sums.f_addmm(&state.h, &layer.recurrent)?;
        let mut gates = gates.f_chunk(4, 1)?.into_iter();
        let mut next = || gates.next().expect("a chunk for each gate");
        let input = next().f_sigmoid()?;
        let forget = next().f_sigmoid()?;
        let candidate = next().f_tanh()?;
        let output = next().f_sigmoid()?;
        state.c = state.c.f_mul(&forget)?.f_addcmul(&input, &candidate)?;
        state.h = output.f_mul(&state.c.f_tanh()?)?;
        below = Some(state.h.shallow_clone());
    }
    Ok(())
}

/// Returns the logits of every row, `[rows, vocabulary]`.
fn logits_of(network: &DeviceNetwork, states: &[DeviceLayerState]) -> Result<Tensor, TchError> {
    let last = states.last().expect("at least one layer");
    network.output_bias.f_addmm(&last.h, &network.output)
}

fn row_of(tensor: &Tensor, row: usize) -> Result<Tensor, TchError> {
    tensor.f_select(0, row as i64)
}

/// Copies a tensor with as many values from the device.
fn copy_from_device(tensor: &Tensor, values: &mut [f32]) -> Result<(), TchError> {
    let count = values.len();
    tensor
        .f_to_device(Device::Cpu)?
        .f_contiguous()?
        .f_copy_data(values, count)
}

fn write_row(
    layers: &mut [DeviceLayerState],
    row: usize,
    state: &HiddenState,
) -> Result<(), TchError> {
    let _guard = tch::no_grad_guard();
    let values = state.float32();
    let hidden = values.len() / (2 * layers.len());
    for (layer, values) in layers.iter().zip(values.chunks_exact(2 * hidden)) {
        let (h, c) = values.split_at(hidden);
        for (tensor, values) in [(&layer.h, h), (&layer.c, c)] {
            row_of(tensor, row)?.f_copy_(&Tensor::f_from_slice(values)?)?;
        }
    }
    Ok(())
}

fn read_row(
    layers: &[DeviceLayerState],
    architecture: &Architecture,
    row: usize,
) -> Result<HiddenState, TchError> {
    let _guard = tch::no_grad_guard();
    let mut state = vec![0.0; architecture.state_len()];
    let parts = state.chunks_exact_mut(architecture.hidden_size);
    let tensors = layers.iter().flat_map(|layer| [&layer.h, &layer.c]);
    for (tensor, values) in tensors.zip(parts) {
        copy_from_device(&row_of(tensor, row)?, values)?;
    }
    Ok(HiddenState::Float32(state.into_boxed_slice()))
}

#[cfg(test)]
mod tests {
    use charlstm_model::decode_step::testing;

    use super::*;

    const CPU: TorchDevice = TorchDevice {
        device: ModelDevice::Cpu,
        max_rows: 20,
    };

    #[test]
    fn logits_match_the_textbook_network() {
        testing::logits_match_the_textbook_network(&CPU);
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_any_batch() {
        testing::a_row_is_the_same_alone_and_in_any_batch(&CPU);
    }

    #[test]
    fn prefill_in_chunks_of_any_length_equals_steps() {
        testing::prefill_in_chunks_of_any_length_equals_steps(&CPU);
    }

    #[test]
    fn a_removed_row_is_replaced_by_the_last_one() {
        testing::a_removed_row_is_replaced_by_the_last_one(&CPU);
    }
}
