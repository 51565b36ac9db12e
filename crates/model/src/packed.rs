//! Weights packed for the decode step: panels of columns whose sums fit the
//! registers. The kernels that read them are in `kernel`.

use super::architecture::Architecture;
use super::parameters::Parameters;

/// Gates of an LSTM cell: input, forget, cell, output.
pub const GATES: usize = 4;

/// The packed weights of one LSTM layer. A panel holds the four gates of
/// `lanes` hidden units, so that all sums that a unit needs for its activation
/// end up in one set of registers.
#[derive(Debug)]
pub struct PackedLayer {
    /// Initial values of the sums, `[tokens, panels, 4, lanes]`. In the first
    /// layer there is a row for each token: its column of `weight_ih` (the
    /// product with a one-hot vector) plus both biases. Other layers have one
    /// row, of biases.
    pub initial: Vec<f32>,
    /// `weight_ih`, `[panels, input, 4, lanes]`; empty in the first layer.
    pub input: Vec<f32>,
    /// `weight_hh`, `[panels, hidden, 4, lanes]`.
    pub recurrent: Vec<f32>,
}

/// The packed weights of a whole network.
#[derive(Debug)]
pub struct PackedNetwork {
    /// Shape of the network.
    pub architecture: Architecture,
    /// Values in one register of this CPU.
    pub lanes: usize,
    /// Panels of a layer; the last one is padded with zeros.
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
    /// Packs the parameters for registers of `lanes` values.
    pub fn new(parameters: &Parameters, lanes: usize) -> Self {
        let architecture = parameters.architecture;
        let panels = architecture.hidden_size.div_ceil(lanes);
        let layers = (0..architecture.num_layers)
            .map(|layer| pack_layer(parameters, layer, panels, lanes))
            .collect();
        let width = GATES * lanes;
        let output_panels = architecture.vocabulary_size.div_ceil(width);
        let (weight, bias) = (
            values_of(parameters, "fc.weight"),
            values_of(parameters, "fc.bias"),
        );
        let hidden = architecture.hidden_size;
        let mut output_initial = vec![0.0; output_panels * width];
        output_initial[..bias.len()].copy_from_slice(bias);
        let mut output = vec![0.0; output_panels * hidden * width];
        for (token, row) in weight.chunks_exact(hidden).enumerate() {
            let (panel, column) = (token / width, token % width);
            for (k, &value) in row.iter().enumerate() {
                output[(panel * hidden + k) * width + column] = value;
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

    /// Returns the number of values in a row of h or c, including the padding
    /// of the last panel.
    pub fn padded_hidden(&self) -> usize {
        self.panels * self.lanes
    }

    /// Returns the memory that the weights take, in bytes.
    pub fn bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| layer.initial.len() + layer.input.len() + layer.recurrent.len())
            .sum();
        (layers + self.output_initial.len() + self.output.len()) * size_of::<f32>()
    }
}

fn values_of<'a>(parameters: &'a Parameters, name: &str) -> &'a [f32] {
    parameters
        .get(name)
        .expect("the layout has every name of its own architecture")
}

fn pack_layer(parameters: &Parameters, layer: usize, panels: usize, lanes: usize) -> PackedLayer {
    let hidden = parameters.architecture.hidden_size;
    let get = |name: &str| values_of(parameters, &format!("lstm.{name}_l{layer}"));
    let (weight_ih, weight_hh) = (get("weight_ih"), get("weight_hh"));
    let (bias_ih, bias_hh) = (get("bias_ih"), get("bias_hh"));
    let bias: Vec<f32> = bias_ih.iter().zip(bias_hh).map(|(a, b)| a + b).collect();
    let width = GATES * lanes;
    // Panel, and column within it, of a row of `weight_ih` or `weight_hh`,
    // which have the rows of all units for the first gate, then the second, ...
    let position = |row: usize| {
        let (gate, unit) = (row / hidden, row % hidden);
        (unit / lanes, gate * lanes + unit % lanes)
    };
    let pack = |matrix: &[f32], inputs: usize| {
        let mut packed = vec![0.0; panels * inputs * width];
        for (row, values) in matrix.chunks_exact(inputs).enumerate() {
            let (panel, column) = position(row);
            for (k, &value) in values.iter().enumerate() {
                packed[(panel * inputs + k) * width + column] = value;
            }
        }
        packed
    };

    let inputs = parameters.architecture.input_size(layer);
    let rows = if layer == 0 { inputs } else { 1 };
    let mut initial = vec![0.0; rows * panels * width];
    for token in 0..rows {
        for (row, &bias) in bias.iter().enumerate() {
            let (panel, column) = position(row);
            let weight = if layer == 0 {
                weight_ih[row * inputs + token]
            } else {
                0.0
            };
            initial[(token * panels + panel) * width + column] = bias + weight;
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
