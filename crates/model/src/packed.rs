//! Weights laid out for the step: panels of columns that one pass over the
//! input keeps in registers. The kernels that read them are in `kernel`.

use super::architecture::Architecture;
use super::parameters::Parameters;

/// Gates of an LSTM cell: input, forget, cell, output.
pub const GATES: usize = 4;

/// One LSTM layer. A panel holds the four gates of `lanes` hidden units, so
/// that what a unit needs for its activation ends in one set of registers.
#[derive(Debug)]
pub struct PackedLayer {
    /// What the sum begins from, `[tokens, panels, 4, lanes]`: for the first
    /// layer a row per character (its column of `weight_ih` and both biases;
    /// the product with a one-hot row is a row), for others one row of biases.
    pub initial: Vec<f32>,
    /// `weight_ih`, `[panels, input, 4, lanes]`; empty for the first layer.
    pub input: Vec<f32>,
    /// `weight_hh`, `[panels, hidden, 4, lanes]`.
    pub recurrent: Vec<f32>,
}

/// A whole network.
#[derive(Debug)]
pub struct PackedNetwork {
    /// Shape of the network.
    pub architecture: Architecture,
    /// Numbers in one register of this machine.
    pub lanes: usize,
    /// Panels of a layer; the last one is filled up with zeros.
    pub panels: usize,
    /// The LSTM layers, bottom first.
    pub layers: Vec<PackedLayer>,
    /// Panels of the linear layer, each of `4 * lanes` characters.
    pub output_panels: usize,
    /// `fc.bias`, `[output_panels, 4, lanes]`.
    pub output_initial: Vec<f32>,
    /// `fc.weight`, `[output_panels, hidden, 4, lanes]`.
    pub output: Vec<f32>,
}

impl PackedNetwork {
    /// Lays out the parameters for registers of `lanes` numbers.
    pub fn new(parameters: &Parameters, lanes: usize) -> Self {
        let architecture = parameters.architecture;
        let panels = architecture.hidden_size.div_ceil(lanes);
        let layers = (0..architecture.num_layers)
            .map(|layer| pack_layer(parameters, layer, panels, lanes))
            .collect();
        let width = GATES * lanes;
        let output_panels = architecture.vocabulary_size.div_ceil(width);
        let (weight, bias) = (
            tensor(parameters, "fc.weight"),
            tensor(parameters, "fc.bias"),
        );
        let hidden = architecture.hidden_size;
        let mut output_initial = vec![0.0; output_panels * width];
        output_initial[..bias.len()].copy_from_slice(bias);
        let mut output = vec![0.0; output_panels * hidden * width];
        for (column, row) in weight.chunks_exact(hidden).enumerate() {
            let (panel, place) = (column / width, column % width);
            for (k, &value) in row.iter().enumerate() {
                output[(panel * hidden + k) * width + place] = value;
            }
        }
        Self {
            architecture,
            lanes,
            panels,
            layers,
            output_panels,
            output_initial,
            output,
        }
    }

    /// Numbers in a row of h or c, the last panel's filling included.
    pub fn padded_hidden(&self) -> usize {
        self.panels * self.lanes
    }

    /// Bytes of memory that the weights take.
    pub fn bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| layer.initial.len() + layer.input.len() + layer.recurrent.len())
            .sum();
        (layers + self.output_initial.len() + self.output.len()) * size_of::<f32>()
    }
}

fn tensor<'a>(parameters: &'a Parameters, name: &str) -> &'a [f32] {
    parameters
        .get(name)
        .expect("the layout has every name of its own architecture")
}

fn pack_layer(parameters: &Parameters, layer: usize, panels: usize, lanes: usize) -> PackedLayer {
    let hidden = parameters.architecture.hidden_size;
    let get = |name: &str| tensor(parameters, &format!("lstm.{name}_l{layer}"));
    let (weight_ih, weight_hh) = (get("weight_ih"), get("weight_hh"));
    let (bias_ih, bias_hh) = (get("bias_ih"), get("bias_hh"));
    let bias: Vec<f32> = bias_ih.iter().zip(bias_hh).map(|(a, b)| a + b).collect();
    let width = GATES * lanes;
    // Where the gate `row` (of 4 * hidden) lies: its panel, and in the panel.
    let place = |row: usize| {
        let (gate, unit) = (row / hidden, row % hidden);
        (unit / lanes, gate * lanes + unit % lanes)
    };
    let pack = |matrix: &[f32], inputs: usize| {
        let mut packed = vec![0.0; panels * inputs * width];
        for (row, values) in matrix.chunks_exact(inputs).enumerate() {
            let (panel, offset) = place(row);
            for (k, &value) in values.iter().enumerate() {
                packed[(panel * inputs + k) * width + offset] = value;
            }
        }
        packed
    };

    let inputs = parameters.architecture.input_size(layer);
    let rows = if layer == 0 { inputs } else { 1 };
    let mut initial = vec![0.0; rows * panels * width];
    for token in 0..rows {
        for (row, &bias) in bias.iter().enumerate() {
            let (panel, offset) = place(row);
            let weight = if layer == 0 {
                weight_ih[row * inputs + token]
            } else {
                0.0
            };
            initial[(token * panels + panel) * width + offset] = bias + weight;
        }
    }
    PackedLayer {
        initial,
        input: if layer == 0 {
            Vec::new()
        } else {
            pack(weight_ih, inputs)
        },
        recurrent: pack(weight_hh, hidden),
    }
}
