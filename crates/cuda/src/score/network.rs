//! The float32 weights of a network on a device, for scores.

use charlstm_int8::GATES;
use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::Parameters;

use super::launch::{SCORE_ROWS, ScoreNetworkAddresses, ScoreSizes};
use crate::device::CudaDevice;
use crate::error::CudaError;
use crate::memory::DeviceMemory;
use crate::network::check_sizes;

/// A padded weight. Its product with the 0 that a vector is padded with is -0,
/// which changes no sum.
const PADDING: f32 = -0.0;

/// The float32 weights of a network on a device, packed for the kernels of
/// scores. Scorers share it through an [`Arc`](std::sync::Arc).
#[derive(Debug)]
pub struct CudaFloatNetwork {
    device: CudaDevice,
    architecture: Architecture,
    sizes: ScoreSizes,
    addresses: ScoreNetworkAddresses,
    bytes: usize,
    // Keeps the memory behind `addresses` allocated.
    _memory: Vec<DeviceMemory>,
}

impl CudaFloatNetwork {
    /// Packs a network's weights and copies them to a device. Blocks until
    /// they are there.
    ///
    /// # Errors
    /// Fails if the device has too little memory or is lost, or if a size of
    /// the network is beyond what the kernels can index.
    pub fn upload(device: &CudaDevice, parameters: &Parameters) -> Result<Self, CudaError> {
        const WHAT: &str = "the copy of a model for scores";
        device.bind()?;
        let stream = device.stream()?;
        let mut memory = Vec::new();
        let (sizes, addresses) = place_parameters(parameters, |numbers| {
            let block = DeviceMemory::copied(&stream, WHAT, &numbers)?;
            let address = block.address();
            memory.push(block);
            Ok(address)
        })?;
        Ok(Self {
            device: device.clone(),
            architecture: parameters.architecture,
            sizes,
            addresses,
            bytes: memory.iter().map(DeviceMemory::bytes).sum(),
            _memory: memory,
        })
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// The shape of the network.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Bytes of device memory that the weights take.
    pub fn device_bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn sizes(&self) -> &ScoreSizes {
        &self.sizes
    }

    pub(super) fn addresses(&self) -> &ScoreNetworkAddresses {
        &self.addresses
    }
}

/// Packs the parameters of a network and hands each array to `place`, which
/// returns its address.
pub(crate) fn place_parameters(
    parameters: &Parameters,
    mut place: impl FnMut(Vec<f32>) -> Result<u64, CudaError>,
) -> Result<(ScoreSizes, ScoreNetworkAddresses), CudaError> {
    let architecture = parameters.architecture;
    let sizes = ScoreSizes {
        hidden: architecture.hidden_size,
        layers: architecture.num_layers,
        vocabulary: architecture.vocabulary_size,
    };
    check_sizes(sizes.columns(), sizes.vocabulary, sizes.layers)?;
    let part = |name: &str| parameters.get(name).unwrap_or_default();
    let mut weights = Vec::new();
    let mut biases = Vec::new();
    let mut initial = Vec::new();
    for layer in 0..sizes.layers {
        let tensor = |name: &str| part(&format!("lstm.{name}_l{layer}"));
        // The order in which the CPU adds them up.
        let both: Vec<f32> = tensor("bias_ih")
            .iter()
            .zip(tensor("bias_hh"))
            .map(|(a, b)| a + b)
            .collect();
        let input = tensor("weight_ih");
        if layer == 0 {
            for token in 0..sizes.vocabulary {
                let column = |row: usize| both[row] + input[row * sizes.vocabulary + token];
                initial.extend(by_unit(&sizes, column));
            }
        } else {
            biases.extend(by_unit(&sizes, |row| both[row] + 0.0));
            pack_gates(&mut weights, &sizes, input);
        }
        pack_gates(&mut weights, &sizes, tensor("weight_hh"));
    }
    let mut output = Vec::new();
    let output_rows = part("fc.weight");
    pack(
        &mut output,
        sizes.output_groups() * SCORE_ROWS,
        sizes.columns(),
        |row| output_rows.chunks_exact(sizes.hidden).nth(row),
    );
    let mut output_biases = part("fc.bias").to_vec();
    output_biases.resize(sizes.output_groups() * SCORE_ROWS, 0.0);
    let addresses = ScoreNetworkAddresses {
        weights: place(weights)?,
        initial: place(initial)?,
        biases: place(biases)?,
        output_weights: place(output)?,
        output_biases: place(output_biases)?,
    };
    Ok((sizes, addresses))
}

/// The number of each row of a layer in the order of the kernels: unit by
/// unit, its gates in turn. `number` is given a row of `[4 gates][hidden]`.
fn by_unit(sizes: &ScoreSizes, number: impl Fn(usize) -> f32) -> impl Iterator<Item = f32> {
    (0..sizes.rows()).map(move |row| gate_row(sizes.hidden, row).map_or(0.0, &number))
}

/// The row of `[4 gates][hidden]` that is row `row` of the kernels; `None` if
/// that is padding.
fn gate_row(hidden: usize, row: usize) -> Option<usize> {
    let (unit, gate) = (row / GATES, row % GATES);
    (unit < hidden).then_some(gate * hidden + unit)
}

/// Appends a matrix of a layer, `[4 gates][hidden][hidden]`.
fn pack_gates(packed: &mut Vec<f32>, sizes: &ScoreSizes, matrix: &[f32]) {
    let hidden = sizes.hidden;
    pack(packed, sizes.rows(), sizes.columns(), |row| {
        gate_row(hidden, row).map(|row| &matrix[row * hidden..][..hidden])
    });
}

/// Appends a matrix of `rows` rows and `columns` columns, both padded, in the
/// order that `score.cu` describes.
fn pack<'a>(
    packed: &mut Vec<f32>,
    rows: usize,
    columns: usize,
    row: impl Fn(usize) -> Option<&'a [f32]>,
) {
    packed.reserve(rows * columns);
    for group in 0..rows / SCORE_ROWS {
        let begin = packed.len();
        packed.resize(begin + SCORE_ROWS * columns, PADDING);
        for lane in 0..SCORE_ROWS {
            let values = row(group * SCORE_ROWS + lane).unwrap_or_default();
            for (column, &value) in values.iter().enumerate() {
                packed[begin + (column / 4 * SCORE_ROWS + lane) * 4 + column % 4] = value;
            }
        }
    }
}
