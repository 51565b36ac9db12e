//! Where tensors are computed: which devices a person can ask for, and which
//! of them this machine has.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A device that was asked for and is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    Cpu,
    /// The CUDA device of that index.
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

/// What a person asks for. Whether it is there, [`Self::select`] finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device, or the processor where there is none.
    #[default]
    Auto,
    /// This one and no other.
    Only(Device),
}

/// A device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The text names no device.
    #[error("invalid device {0:?}: use auto, cpu, cuda or cuda:N, where N starts at 0")]
    Unknown(String),
    /// The device is not on this machine, or this libtorch cannot use it.
    #[error("device {asked} is not available (available: {available})")]
    Absent {
        /// What was asked for.
        asked: Device,
        /// The available devices, for a person.
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
                // `parse` would also take "+1".
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
    /// Selects a device of this machine. `cuda_devices` counts its CUDA
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
            Self::Only(asked) => Err(DeviceError::Absent {
                asked,
                available: available_devices(cuda_devices),
            }),
        }
    }
}

fn available_devices(cuda_devices: usize) -> String {
    match cuda_devices {
        0 => {
            "cpu (this machine has no CUDA device, or this build does not support CUDA)".to_owned()
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
    fn a_device_is_written_as_it_is_read() {
        for text in ["auto", "cpu", "cuda:0", "cuda:13"] {
            assert_eq!(choice(text).to_string(), text);
        }
        assert_eq!(choice("cuda"), choice("cuda:0"));
    }

    #[test]
    fn a_text_that_names_no_device_is_refused_with_what_would_be_right() {
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "CPU", "cuda:1x"] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(error.to_string().contains("use auto, cpu"), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_named_with_those_that_are() {
        let error = choice("cuda:1").among(1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "device cuda:1 is not available (available: cpu, cuda:0)"
        );
        let error = choice("cuda:0").among(0).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("(available: cpu (this machine has no CUDA"),
            "{error}"
        );
    }

    #[test]
    fn auto_takes_the_first_cuda_device_or_the_processor() {
        assert_eq!(choice("auto").among(2), Ok(Device::Cuda(0)));
        assert_eq!(choice("auto").among(0), Ok(Device::Cpu));
    }
}
