//! The errors of the crate.

use charlstm_int8::StateError;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use thiserror::Error;

/// What a call on a GPU can fail with.
///
/// After [`CudaError::DeviceLost`] nothing on the device can be used any more:
/// every further call fails the same way, and only a new process can use the
/// device again. After any other error the batch is unchanged, unless the
/// error says otherwise.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CudaError {
    /// A library is not installed or cannot be loaded.
    #[error("{library} cannot be loaded: {remedy}")]
    LibraryMissing {
        /// File name of the library.
        library: &'static str,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// A library is too old.
    #[error("{library} has no function {function}: install a newer version")]
    FunctionMissing {
        /// File name of the library.
        library: &'static str,
        /// Name of the function.
        function: &'static str,
    },
    /// There is no device with this number.
    #[error("CUDA device {ordinal} does not exist; this machine has {available}")]
    NoSuchDevice {
        /// The requested number, from 0.
        ordinal: usize,
        /// Number of devices.
        available: usize,
    },
    /// The device lacks instructions that the kernels need.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or later"
    )]
    UnsupportedDevice {
        /// Name of the device.
        name: String,
        /// Major number of its compute capability.
        major: u32,
        /// Minor number of its compute capability.
        minor: u32,
    },
    /// The kernels do not compile.
    #[error("NVRTC cannot compile the kernels for {target}: {message}")]
    Compilation {
        /// The architecture.
        target: String,
        /// What the compiler reported.
        message: String,
    },
    /// The device has too little free memory. Nothing was allocated.
    #[error("out of GPU memory: {what} needs {bytes} bytes, {free} are free")]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes that were requested.
        bytes: usize,
        /// Bytes that are free on the device.
        free: usize,
    },
    /// The device failed: a kernel trapped, memory is damaged, or the device
    /// has disappeared.
    #[error("the GPU is lost: {operation} failed with {code}; restart the process to use it again")]
    DeviceLost {
        /// What was being done.
        operation: &'static str,
        /// The driver's name of the error.
        code: String,
    },
    /// Any other error of the driver.
    #[error("{operation} failed with {code}")]
    Driver {
        /// What was being done.
        operation: &'static str,
        /// The driver's name of the error.
        code: String,
    },
    /// All slots of the batch are in use.
    #[error("the batch is full: all {capacity} slots are in use")]
    BatchFull {
        /// Number of slots.
        capacity: usize,
    },
    /// A batch of this size cannot be created.
    #[error("a batch of {given} slots is not possible; the number must be from 1 to {max}")]
    Capacity {
        /// The requested number of slots.
        given: usize,
        /// The largest possible number.
        max: usize,
    },
    /// The network is too large for the kernels' index arithmetic.
    #[error("{what} is {given}; the kernels accept at most {max}")]
    NetworkTooLarge {
        /// The size.
        what: &'static str,
        /// Its value.
        given: usize,
        /// The largest accepted value.
        max: usize,
    },
    /// The slot was removed from the batch.
    #[error("slot {index} is not in use by this handle")]
    StaleSlot {
        /// Index of the slot.
        index: usize,
    },
    /// One call names a slot twice.
    #[error("slot {index} occurs twice in one call")]
    DuplicateSlot {
        /// Index of the slot.
        index: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("token id {token} is outside the vocabulary of {vocabulary} characters")]
    InvalidToken {
        /// The token id.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The state belongs to a network of another shape.
    #[error("the state has {given} units; this network has {expected}")]
    StateShape {
        /// Units of all layers in the state.
        given: usize,
        /// Units of all layers in the network.
        expected: usize,
    },
    /// The device returned a state that no sequence can reach: its memory is
    /// damaged.
    #[error("the GPU returned an impossible state: {0}")]
    ImpossibleState(#[from] StateError),
    /// The results for a model differ from those of the CPU.
    #[error("the GPU computes other results than the CPU")]
    WrongResults,
    /// An earlier call failed while the batch was being changed, so the states
    /// in it are unknown.
    #[error("the batch failed earlier and cannot be used: {0}")]
    BatchFailed(Box<CudaError>),
}

impl CudaError {
    /// Whether the device can no longer be used by this process.
    pub fn is_device_lost(&self) -> bool {
        match self {
            Self::DeviceLost { .. } => true,
            Self::BatchFailed(cause) => cause.is_device_lost(),
            _ => false,
        }
    }

    /// Describes an error of the driver during `operation`.
    pub(crate) fn driver(operation: &'static str, error: DriverError) -> Self {
        let code = format!("{:?}", error.0);
        if is_sticky(error.0) {
            Self::DeviceLost { operation, code }
        } else {
            Self::Driver { operation, code }
        }
    }
}

/// Whether the context is unusable after this error. The driver then returns
/// the error from every later call.
fn is_sticky(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_INVALID_CONTEXT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_MPS_CONNECTION_FAILED
            | CUDA_ERROR_MPS_RPC_FAILURE
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trapped_kernel_loses_the_device_and_a_bad_argument_does_not() {
        let lost = CudaError::driver("a step", DriverError(CUresult::CUDA_ERROR_LAUNCH_FAILED));
        assert!(lost.is_device_lost());
        assert_eq!(
            lost.to_string(),
            "the GPU is lost: a step failed with CUDA_ERROR_LAUNCH_FAILED; restart the process to use it again"
        );
        assert!(CudaError::BatchFailed(Box::new(lost)).is_device_lost());
        let error = CudaError::driver("a step", DriverError(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert!(!error.is_device_lost());
    }
}
