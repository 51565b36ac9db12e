//! The states of a batch on a device of libtorch (a GPU). Every product has the
//! same shape whatever is asked: `max_rows` rows, used or not. A matrix library
//! chooses its kernel by the shape, so that a row comes out the same beside any
//! others; a prefill, for the same reason, is a row that is stepped alone.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use charlstm_model::decode_step::check::MAX_ROWS;
use charlstm_model::decode_step::{
    Arithmetic, BatchBackend, DecodeDevice, DecodeError, DecodeWeights, HiddenState, WeightLayout,
};
use charlstm_model::device::Device as ModelDevice;

use super::device::torch_device;
use crate::shared_slices::ParameterViews;
use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::Parameters;

fn failed(error: TchError) -> DecodeError {
    DecodeError(error.to_string())
}

/// Generation on a device of libtorch. Every step computes `max_rows` rows.
#[derive(Clone, Copy, Debug)]
pub struct TorchDevice {
    /// The device.
    pub device: ModelDevice,
    /// Largest number of rows in a batch.
    pub max_rows: usize,
}

impl DecodeDevice for TorchDevice {
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        let rows = self.max_rows.max(MAX_ROWS);
        let weights = TorchWeights::new(parameters, torch_device(self.device), rows);
        let layout = Box::new(weights.map_err(failed)?);
        Ok(DecodeWeights::new(parameters.architecture, layout))
    }
}

/// The weights of a network on a device, transposed for rows.
#[derive(Debug)]
struct TorchWeights {
    architecture: Architecture,
    device: Device,
    rows: usize,
    /// A tensor may be used by one thread at a time; each stepper takes
    /// handles of its own.
    network: Mutex<Network>,
}

#[derive(Debug)]
struct Network {
    layers: Vec<Layer>,
    /// `[hidden, vocabulary]`.
    output: Tensor,
    /// `[vocabulary]`.
    output_bias: Tensor,
}

#[derive(Debug)]
struct Layer {
    /// For the first layer `[vocabulary, 4 hidden]`, a row per character with
    /// both biases in it (a product with a one-hot row is a row); for others
    /// `[hidden, 4 hidden]`.
    input: Tensor,
    /// The sum of both biases, `[4 hidden]`. Of no use to the first layer.
    bias: Tensor,
    /// `[hidden, 4 hidden]`.
    recurrent: Tensor,
}

impl TorchWeights {
    /// Moves the weights to `device`, for products of `rows` rows.
    fn new(parameters: &Parameters, device: Device, rows: usize) -> Result<Self, TchError> {
        let _guard = tch::no_grad_guard();
        let flat = Tensor::f_from_slice(&parameters.values)?.f_to_device(device)?;
        let views = ParameterViews::of(&parameters.architecture, &flat)?;
        let layers = views.layers.iter().enumerate().map(|(index, layer)| {
            let bias = layer.bias_ih.f_add(&layer.bias_hh)?;
            let input = layer.weight_ih.f_tr()?;
            let input = if index == 0 {
                input.f_add(&bias)?
            } else {
                input
            };
            Ok(Layer {
                input: input.f_contiguous()?,
                bias,
                recurrent: layer.weight_hh.f_tr()?.f_contiguous()?,
            })
        });
        let network = Network {
            layers: layers.collect::<Result<_, TchError>>()?,
            output: views.fc_weight.f_tr()?.f_contiguous()?,
            output_bias: views.fc_bias.f_detach_copy()?,
        };
        Ok(Self {
            architecture: parameters.architecture,
            device,
            rows,
            network: Mutex::new(network),
        })
    }

    fn handles(&self) -> Network {
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        Network {
            layers: network
                .layers
                .iter()
                .map(|layer| Layer {
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
struct LayerState {
    h: Tensor,
    c: Tensor,
}

/// The states of a batch.
struct TorchStates {
    architecture: Architecture,
    device: Device,
    /// Rows of every product.
    rows: usize,
    network: Network,
    layers: Vec<LayerState>,
    /// The sequence that is being prefilled is row 0; the others are idle.
    single: Vec<LayerState>,
    /// `[rows, vocabulary]`, on the processor.
    logits: Vec<f32>,
    /// One number for each row.
    tokens: Vec<i64>,
}

impl TorchStates {
    /// Room for `max_rows` rows.
    ///
    /// # Panics
    /// Where the weights were laid out for fewer.
    fn new(weights: &TorchWeights, max_rows: usize) -> Result<Self, TchError> {
        let (rows, architecture) = (weights.rows, weights.architecture);
        assert!(max_rows <= rows, "{max_rows} rows, laid out for {rows}");
        let shape = [rows as i64, architecture.hidden_size as i64];
        let zeros = || Tensor::f_zeros(shape, (Kind::Float, weights.device));
        let states = || -> Result<Vec<LayerState>, TchError> {
            (0..architecture.num_layers)
                .map(|_| {
                    Ok(LayerState {
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
            single: states()?,
            logits: vec![0.0; rows * architecture.vocabulary_size],
            tokens: vec![0; rows],
        })
    }
}

impl TorchStates {
    fn write_state(&mut self, row: usize, state: &HiddenState) -> Result<(), TchError> {
        write_row(&mut self.layers, row, state)
    }

    fn read_state(&self, row: usize) -> Result<HiddenState, TchError> {
        read_row(&self.layers, &self.architecture, row)
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

    fn advance(&mut self, tokens: &[u32]) -> Result<&[f32], TchError> {
        let _guard = tch::no_grad_guard();
        for (place, &token) in self.tokens.iter_mut().zip(tokens) {
            *place = i64::from(token);
        }
        let tokens_there = Tensor::f_from_slice(&self.tokens)?.f_to_device(self.device)?;
        advance(&self.network, &mut self.layers, &tokens_there)?;
        let used = tokens.len() * self.architecture.vocabulary_size;
        let logits = logits_of(&self.network, &self.layers)?;
        fetch(&logits, &mut self.logits)?;
        Ok(&self.logits[..used])
    }

    fn feed(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        mut logits: Option<&mut Vec<f32>>,
    ) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        write_row(&mut self.single, 0, state)?;
        // Column `k` of it feeds character `k` to each row.
        let all: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let all = Tensor::f_from_slice(&all)?
            .f_to_device(self.device)?
            .f_unsqueeze(0)?
            .f_expand([self.rows as i64, -1], false)?;
        for at in 0..tokens.len() {
            let token = all.f_select(1, at as i64)?.f_contiguous()?;
            advance(&self.network, &mut self.single, &token)?;
            if let Some(out) = logits.as_deref_mut() {
                let begin = out.len();
                out.resize(begin + self.architecture.vocabulary_size, 0.0);
                let row = row_of(&logits_of(&self.network, &self.single)?, 0)?;
                fetch(&row, &mut out[begin..])?;
            }
        }
        *state = read_row(&self.single, &self.architecture, 0)?;
        Ok(())
    }
}

impl BatchBackend for TorchStates {
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), DecodeError> {
        self.write_state(row, state).map_err(failed)
    }

    fn read(&self, row: usize) -> Result<HiddenState, DecodeError> {
        self.read_state(row).map_err(failed)
    }

    fn copy(&mut self, from: usize, to: usize) -> Result<(), DecodeError> {
        self.copy_row(from, to).map_err(failed)
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError> {
        self.advance(tokens).map_err(failed)
    }

    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError> {
        self.feed(state, tokens, logits).map_err(failed)
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
        Ok(Box::new(TorchStates::new(self, max_rows).map_err(failed)?))
    }
}

/// One character, `[rows]`, into every row.
fn advance(network: &Network, states: &mut [LayerState], tokens: &Tensor) -> Result<(), TchError> {
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

/// The logits of every row, `[rows, vocabulary]`.
fn logits_of(network: &Network, states: &[LayerState]) -> Result<Tensor, TchError> {
    let last = states.last().expect("at least one layer");
    network.output_bias.f_addmm(&last.h, &network.output)
}

fn row_of(tensor: &Tensor, row: usize) -> Result<Tensor, TchError> {
    tensor.f_select(0, row as i64)
}

/// Copies numbers from the device.
fn fetch(tensor: &Tensor, numbers: &mut [f32]) -> Result<(), TchError> {
    let count = numbers.len();
    tensor
        .f_to_device(Device::Cpu)?
        .f_contiguous()?
        .f_copy_data(numbers, count)
}

fn write_row(layers: &mut [LayerState], row: usize, state: &HiddenState) -> Result<(), TchError> {
    let _guard = tch::no_grad_guard();
    let hidden = state.0.len() / (2 * layers.len());
    for (layer, numbers) in layers.iter().zip(state.0.chunks_exact(2 * hidden)) {
        let (h, c) = numbers.split_at(hidden);
        for (tensor, numbers) in [(&layer.h, h), (&layer.c, c)] {
            row_of(tensor, row)?.f_copy_(&Tensor::f_from_slice(numbers)?)?;
        }
    }
    Ok(())
}

fn read_row(
    layers: &[LayerState],
    architecture: &Architecture,
    row: usize,
) -> Result<HiddenState, TchError> {
    let _guard = tch::no_grad_guard();
    let mut state = HiddenState::zeros(architecture);
    let parts = state.0.chunks_exact_mut(architecture.hidden_size);
    let tensors = layers.iter().flat_map(|layer| [&layer.h, &layer.c]);
    for (tensor, numbers) in tensors.zip(parts) {
        fetch(&row_of(tensor, row)?, numbers)?;
    }
    Ok(state)
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
    fn logits_are_those_of_the_textbook_network() {
        testing::logits_are_those_of_the_textbook_network(&CPU);
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_any_number_of_others() {
        testing::a_row_is_the_same_alone_and_among_any_number_of_others(&CPU);
    }

    #[test]
    fn prefill_in_pieces_of_any_length_equals_steps() {
        testing::prefill_in_pieces_of_any_length_equals_steps(&CPU);
    }

    #[test]
    fn the_last_row_fills_the_place_of_one_that_leaves() {
        testing::the_last_row_fills_the_place_of_one_that_leaves(&CPU);
    }
}
