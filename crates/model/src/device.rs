//! Devices for training and generation: how a user names them, and the
//! selection of one that this computer has.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A device of this computer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

/// How a GPU computes the float32 products of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GpuMath {
    /// In float32.
    #[default]
    Float32,
    /// In TF32: the inputs are rounded to 10 bits of mantissa, which is faster.
    Tf32,
}

/// A user's choice of a device. [`Self::select`] checks that it is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device, or the CPU if there is none.
    #[default]
    Auto,
    /// This device and no other.
    Only(Device),
}

/// A device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The text does not name a device.
    #[error("invalid device {0:?}: use auto, cpu, cuda or cuda:N, where N starts at 0")]
    Unknown(String),
    /// The computer does not have the device, or this build cannot use it.
    #[error("device {chosen} is not available (available: {available})")]
    Absent {
        /// The chosen device.
        chosen: Device,
        /// The available devices, as text.
        available: String,
    },
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Only(Device::Cpu)),
            "cuda" => Ok(Self::Only(Device::Cuda(0))),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                // `parse` would also accept "+1".
                if !index.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(unknown());
                }
                let index = index.parse().map_err(|_| unknown())?;
                Ok(Self::Only(Device::Cuda(index)))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Only(device) => device.fmt(formatter),
        }
    }
}

impl DeviceChoice {
    /// Selects a device of this computer. `cuda_devices` counts its CUDA
    /// devices; it is called only if the answer matters, because it may start
    /// a driver, which takes seconds.
    ///
    /// # Errors
    /// [`DeviceError::Absent`], with the devices that are available.
    pub fn select(self, cuda_devices: impl FnOnce() -> usize) -> Result<Device, DeviceError> {
        match self {
            Self::Only(Device::Cpu) => Ok(Device::Cpu),
            _ => self.among(cuda_devices()),
        }
    }

    fn among(self, cuda_devices: usize) -> Result<Device, DeviceError> {
        match self {
            Self::Auto if cuda_devices > 0 => Ok(Device::Cuda(0)),
            Self::Auto | Self::Only(Device::Cpu) => Ok(Device::Cpu),
            Self::Only(Device::Cuda(index)) if index < cuda_devices => Ok(Device::Cuda(index)),
            Self::Only(chosen) => Err(DeviceError::Absent {
                chosen,
                available: available_devices(cuda_devices),
            }),
        }
    }
}

fn available_devices(cuda_devices: usize) -> String {
    match cuda_devices {
        0 => {
            "cpu (this computer has no CUDA device, or this build does not support CUDA)".to_owned()
        }
        1 => "cpu, cuda:0".to_owned(),
        count => format!("cpu, cuda:0 to cuda:{}", count - 1),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn choice(text: &str) -> DeviceChoice {
        text.parse().unwrap()
    }

    #[test]
    fn a_displayed_choice_parses_to_the_same_choice() {
        for text in ["auto", "cpu", "cuda:0", "cuda:13"] {
            assert_eq!(choice(text).to_string(), text);
        }
        assert_eq!(choice("cuda"), choice("cuda:0"));
    }

    #[test]
    fn an_invalid_device_is_rejected_with_the_valid_ones() {
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "CPU", "cuda:1x"] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(error.to_string().contains("use auto, cpu"), "{error}");
        }
    }

    #[test]
    fn an_unavailable_device_is_rejected_with_the_available_ones() {
        let error = choice("cuda:1").among(1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "device cuda:1 is not available (available: cpu, cuda:0)"
        );
        let error = choice("cuda:0").among(0).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("(available: cpu (this computer has no CUDA"),
            "{error}"
        );
    }

    #[test]
    fn auto_selects_the_first_cuda_device_or_the_cpu() {
        assert_eq!(choice("auto").among(2), Ok(Device::Cuda(0)));
        assert_eq!(choice("auto").among(0), Ok(Device::Cpu));
    }
}
