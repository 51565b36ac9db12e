//! The CUDA devices that libtorch can use.

use charlstm_model::device::Device;

/// Counts the CUDA devices. Blocks; the first call may take seconds because it
/// starts the driver.
pub fn cuda_devices() -> usize {
    if !tch::Cuda::is_available() {
        return 0;
    }
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}

/// Returns libtorch's name of a device.
pub(crate) fn torch_device(device: Device) -> tch::Device {
    match device {
        Device::Cpu => tch::Device::Cpu,
        Device::Cuda(index) => tch::Device::Cuda(index),
    }
}
