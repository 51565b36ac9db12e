//! The devices that models are prepared for.

use std::sync::Arc;

use charlstm_model::decode_step::{DecodeDevice, Int8Processor, Precision, Processor};

/// The devices that models are prepared for, and the precision in which they
/// generate.
#[derive(Clone, Debug)]
pub struct DecodeDevices {
    /// Device of the float32 decode step, and of scores.
    pub float32: Arc<dyn DecodeDevice>,
    /// Device of the int8 decode step.
    pub int8: Arc<dyn DecodeDevice>,
    /// Precision of a model when none is requested. A version that int8 costs
    /// too much is computed in float32 all the same.
    pub precision: Precision,
}

impl Default for DecodeDevices {
    /// The CPU, with int8 as the precision.
    fn default() -> Self {
        Self {
            float32: Arc::new(Processor::default()),
            int8: Arc::new(Int8Processor::default()),
            precision: Precision::Int8,
        }
    }
}

impl DecodeDevices {
    pub(super) fn of(&self, precision: Precision) -> &dyn DecodeDevice {
        match precision {
            Precision::Float32 => &*self.float32,
            Precision::Int8 => &*self.int8,
        }
    }
}
