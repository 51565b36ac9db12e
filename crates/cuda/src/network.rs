//! A network's weights on a device.

use std::sync::Arc;

use charlstm_int8::{QuantisedNetwork, Shape};
use cudarc::driver::CudaStream;

use crate::device::CudaDevice;
use crate::error::CudaError;
use crate::fragments::{gates_by_unit, pack_gates, pack_output, padded};
use crate::launch::{COLUMN_BLOCK, NetworkAddresses, OUTPUT_BLOCK};
use crate::memory::DeviceMemory;

/// Largest padded hidden size: up to here, int32 sums are exact
/// ([`charlstm_int8::MAX_HIDDEN_SIZE`]) and grids fit.
const MAX_HIDDEN: usize = 131_072;

/// Largest vocabulary and number of layers: they are int32 in the kernels, and
/// no character set has more than 2^21 characters.
const MAX_VOCABULARY: usize = 1 << 21;
const MAX_LAYERS: usize = 1 << 15;

/// Fails if the kernels cannot index a network of these sizes. `hidden` is
/// padded.
pub(crate) fn check_sizes(
    hidden: usize,
    vocabulary: usize,
    layers: usize,
) -> Result<(), CudaError> {
    for (what, given, max) in [
        ("the hidden size", hidden, MAX_HIDDEN),
        ("the vocabulary", vocabulary, MAX_VOCABULARY),
        ("the number of layers", layers, MAX_LAYERS),
    ] {
        if given > max {
            return Err(CudaError::NetworkTooLarge { what, given, max });
        }
    }
    Ok(())
}

/// The weights of a network on a device, packed for the kernels. Batches share
/// it through an [`Arc`](std::sync::Arc).
#[derive(Debug)]
pub struct CudaNetwork {
    device: CudaDevice,
    shape: Shape,
    addresses: NetworkAddresses,
    bytes: usize,
    // Keeps the memory behind `addresses` allocated.
    _memory: Vec<DeviceMemory>,
}

/// Packs the tensors of a network and hands each to `place`, which returns its
/// address.
pub(crate) fn place_network(
    network: &QuantisedNetwork,
    mut place_weights: impl FnMut(Vec<i8>) -> Result<u64, CudaError>,
    mut place_numbers: impl FnMut(Vec<f32>) -> Result<u64, CudaError>,
) -> Result<NetworkAddresses, CudaError> {
    let shape = network.shape();
    let unpadded = shape.hidden_size();
    let hidden = unpadded.next_multiple_of(COLUMN_BLOCK);
    check_sizes(hidden, shape.vocabulary_size(), shape.num_layers())?;
    let mut hidden_weights = Vec::new();
    let mut hidden_scales = Vec::new();
    let mut input_weights = Vec::new();
    let mut input_scales = Vec::new();
    let mut biases = Vec::new();
    let mut initial = Vec::new();
    for layer in network.layers() {
        let by_unit = |values| gates_by_unit(values, unpadded, hidden);
        hidden_weights.extend(pack_gates(layer.recurrent(), unpadded, hidden));
        hidden_scales.extend(by_unit(layer.recurrent().scales()));
        match layer.input() {
            None => initial = by_unit(layer.initial()),
            Some(input) => {
                input_weights.extend(pack_gates(input, unpadded, hidden));
                input_scales.extend(by_unit(input.scales()));
                biases.extend(by_unit(layer.initial()));
            }
        }
    }
    let outputs = shape.vocabulary_size().next_multiple_of(OUTPUT_BLOCK);
    Ok(NetworkAddresses {
        hidden_weights: place_weights(hidden_weights)?,
        input_weights: place_weights(input_weights)?,
        hidden_scales: place_numbers(hidden_scales)?,
        input_scales: place_numbers(input_scales)?,
        biases: place_numbers(biases)?,
        initial: place_numbers(initial)?,
        output_weights: place_weights(pack_output(network.output(), outputs, hidden))?,
        output_scales: place_numbers(padded(network.output().scales(), outputs))?,
        output_biases: place_numbers(padded(network.output_bias(), outputs))?,
        hidden,
        layers: shape.num_layers(),
        vocabulary: shape.vocabulary_size(),
    })
}

impl CudaNetwork {
    /// Packs a network's weights and copies them to a device. Blocks until
    /// they are there.
    ///
    /// # Errors
    /// Fails if the device has too little memory or is lost, or if a size of
    /// the network is beyond what the kernels can index.
    pub fn upload(device: &CudaDevice, network: &QuantisedNetwork) -> Result<Self, CudaError> {
        device.bind()?;
        let stream: Arc<CudaStream> = device.stream()?;
        let memory = std::cell::RefCell::new(Vec::new());
        let keep = |block: DeviceMemory| {
            let address = block.address();
            memory.borrow_mut().push(block);
            address
        };
        const WHAT: &str = "the weights of a model";
        let addresses = place_network(
            network,
            |weights| DeviceMemory::copied(&stream, WHAT, &weights).map(keep),
            |numbers| DeviceMemory::copied(&stream, WHAT, &numbers).map(keep),
        )?;
        let memory = memory.into_inner();
        Ok(Self {
            device: device.clone(),
            shape: *network.shape(),
            addresses,
            bytes: memory.iter().map(DeviceMemory::bytes).sum(),
            _memory: memory,
        })
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// The sizes of the network.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of device memory that the weights take.
    pub fn device_bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn addresses(&self) -> &NetworkAddresses {
        &self.addresses
    }
}
