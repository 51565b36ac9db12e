//! The int8 decode step on the CPU: the kernels of `charlstm-int8` behind the
//! traits of this module.

use std::io;

use charlstm_int8::{Batch, FloatLayer, FloatNetwork, Kernel, PackedNetwork, QuantisedNetwork};

use super::state::shape;
use super::{
    Arithmetic, BatchBackend, DecodeDevice, DecodeError, DecodeWeights, HiddenState, WeightLayout,
};
use crate::architecture::Architecture;
use crate::parameters::Parameters;

/// The CPU with int8 arithmetic, for batches of any size. The kernels give the
/// same bits.
#[derive(Clone, Copy, Debug)]
pub struct Int8Processor {
    /// The kernel to compute with.
    pub kernel: Kernel,
}

impl Default for Int8Processor {
    /// The most preferred kernel of this CPU.
    fn default() -> Self {
        Self {
            kernel: Kernel::best(),
        }
    }
}

impl Int8Processor {
    /// Lays out a network that has been quantised.
    ///
    /// # Errors
    /// The kernel is not available on this CPU.
    pub fn lay_out(
        self,
        architecture: Architecture,
        network: &QuantisedNetwork,
    ) -> Result<DecodeWeights, DecodeError> {
        let packed = PackedNetwork::new(network, self.kernel).map_err(decode_error)?;
        Ok(DecodeWeights::new(
            architecture,
            Box::new(Int8Weights(packed)),
        ))
    }
}

impl DecodeDevice for Int8Processor {
    /// # Errors
    /// Also if the network cannot be quantised: a weight is not finite or too
    /// large, or a size is.
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        self.lay_out(parameters.architecture, &quantise(parameters)?)
    }
}

fn decode_error(error: impl std::error::Error + Send + Sync + 'static) -> DecodeError {
    DecodeError(Box::new(error))
}

/// Quantises a network, for this and other devices that compute in int8.
///
/// # Errors
/// A weight is not finite or too large, or a size is.
pub fn quantise(parameters: &Parameters) -> Result<QuantisedNetwork, DecodeError> {
    let architecture = parameters.architecture;
    let shape = shape(&architecture).map_err(decode_error)?;
    let part = |name: &str| parameters.get(name).unwrap_or_default();
    let layers = (0..architecture.num_layers).map(|layer| {
        let tensor = |name: &str| part(&format!("lstm.{name}_l{layer}"));
        FloatLayer {
            weight_ih: tensor("weight_ih"),
            weight_hh: tensor("weight_hh"),
            bias_ih: tensor("bias_ih"),
            bias_hh: tensor("bias_hh"),
        }
    });
    let network = FloatNetwork {
        layers: layers.collect(),
        fc_weight: part("fc.weight"),
        fc_bias: part("fc.bias"),
    };
    QuantisedNetwork::new(shape, &network).map_err(decode_error)
}

/// Weights packed for a kernel.
#[derive(Debug)]
struct Int8Weights(PackedNetwork);

impl WeightLayout for Int8Weights {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::INT8
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn batch(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError> {
        Ok(Box::new(Int8Batch(Batch::new(&self.0, max_rows))))
    }
}

/// The states of a batch. It may have more rows than its owner uses, until the
/// next step. Its operations never return an error, because there is no device
/// that could fail.
struct Int8Batch(Batch);

impl BatchBackend for Int8Batch {
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), DecodeError> {
        if row < self.0.rows() {
            self.0.set_state(row, state.int8());
        } else {
            self.0.push(state.int8());
        }
        Ok(())
    }

    fn read(&self, row: usize) -> Result<HiddenState, DecodeError> {
        Ok(HiddenState::Int8(self.0.state(row)))
    }

    fn move_last(&mut self, from: usize, to: usize) -> Result<(), DecodeError> {
        self.0.copy_row(from, to);
        Ok(())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError> {
        self.0.truncate(tokens.len());
        Ok(self.0.step(tokens))
    }

    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError> {
        let mut inner = state.int8().clone();
        match logits {
            None => self.0.prefill(&mut inner, tokens),
            Some(logits) => logits.extend(self.0.prefill_logits(&mut inner, tokens)),
        }
        *state = HiddenState::Int8(inner);
        Ok(())
    }

    fn set_partner(&mut self, wanted: bool) -> io::Result<()> {
        self.0.set_partner(wanted)
    }
}
