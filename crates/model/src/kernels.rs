//! The instruction sets that decode steps on the CPU can use: how a user names
//! them, and the selection of those that this CPU has. They all give the same
//! bits.

use std::fmt;
use std::str::FromStr;

pub use charlstm_int8::{Kernel, KernelError};
use pulp::Arch;

use crate::decode_step::Precision;

/// The instruction set of float32 decode steps, and of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatKernels {
    /// Plain Rust, without any requirement on the CPU.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512.
    Avx512,
}

impl Default for FloatKernels {
    /// The fastest that this CPU has.
    fn default() -> Self {
        Self::best()
    }
}

impl FloatKernels {
    /// Returns those that this CPU has, from the slowest to the fastest.
    pub fn available() -> Vec<Self> {
        let mut available = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if pulp::x86::V3::is_available() {
                available.push(Self::Avx2);
            }
            if pulp::x86::V4::is_available() {
                available.push(Self::Avx512);
            }
        }
        available
    }

    /// Returns the fastest that this CPU has.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// Returns the name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Returns the registers to compute with; others if this CPU does not have
    /// these. On a CPU other than x86-64, portable code uses its registers.
    pub fn arch(self) -> Arch {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => return Arch::Scalar,
            Self::Avx2 => {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    return Arch::V3(simd);
                }
            }
            Self::Avx512 => {}
        }
        Arch::new()
    }
}

/// A user's choice of kernels. [`Self::select`] checks that this CPU has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KernelChoice {
    /// The fastest.
    #[default]
    Auto,
    /// This one and no other, for tests and diagnosis.
    Only(Kernel),
}

impl FromStr for KernelChoice {
    type Err = KernelError;

    fn from_str(text: &str) -> Result<Self, KernelError> {
        match text {
            "auto" => Ok(Self::Auto),
            name => name.parse().map(Self::Only),
        }
    }
}

impl KernelChoice {
    /// Selects the kernels of both precisions. For float32, `portable` and
    /// `avx2` are used as given, and any other choice selects the fastest.
    ///
    /// # Errors
    /// This CPU does not have the chosen kernel; the text lists those that it
    /// has.
    pub fn select(self) -> Result<Kernels, KernelError> {
        let Self::Only(kernel) = self else {
            return Ok(Kernels::default());
        };
        if !kernel.is_available() {
            return Err(KernelError::Unavailable { kernel });
        }
        let float32 = match kernel {
            Kernel::Portable => FloatKernels::Portable,
            Kernel::Avx2 if FloatKernels::available().contains(&FloatKernels::Avx2) => {
                FloatKernels::Avx2
            }
            _ => FloatKernels::best(),
        };
        Ok(Kernels {
            int8: kernel,
            float32,
        })
    }
}

/// The kernels that decode steps on the CPU use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// For int8.
    pub int8: Kernel,
    /// For float32.
    pub float32: FloatKernels,
}

impl Default for Kernels {
    /// The fastest of this CPU.
    fn default() -> Self {
        Self {
            int8: Kernel::best(),
            float32: FloatKernels::best(),
        }
    }
}

impl Kernels {
    /// Returns the name of the kernels of a precision.
    pub fn name(&self, precision: Precision) -> &'static str {
        match precision {
            Precision::Int8 => self.int8.name(),
            Precision::Float32 => self.float32.name(),
        }
    }
}

impl fmt::Display for FloatKernels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn choice(text: &str) -> KernelChoice {
        text.parse().unwrap()
    }

    #[test]
    fn auto_selects_the_fastest_of_both_precisions() {
        let kernels = choice("auto").select().unwrap();
        assert_eq!(kernels.int8, Kernel::best());
        assert_eq!(kernels.float32, FloatKernels::best());
    }

    #[test]
    fn portable_and_avx2_are_used_for_float32_as_well_and_others_select_its_fastest() {
        let kernels = choice("portable").select().unwrap();
        assert_eq!(kernels.name(Precision::Int8), "portable");
        assert_eq!(kernels.name(Precision::Float32), "portable");
        for kernel in Kernel::available() {
            let kernels = choice(kernel.name()).select().unwrap();
            assert_eq!(kernels.int8, kernel);
            let float32 = match kernel {
                Kernel::Portable => "portable",
                Kernel::Avx2 => "avx2",
                _ => FloatKernels::best().name(),
            };
            assert_eq!(kernels.float32.name(), float32);
        }
    }

    #[test]
    fn kernels_that_this_cpu_does_not_have_are_rejected_with_those_that_it_has() {
        let error = choice("amx").select().unwrap_err().to_string();
        assert!(
            error.starts_with("kernel amx is not available on this machine (available: portable"),
            "{error}"
        );
        let error = "sse9".parse::<KernelChoice>().unwrap_err().to_string();
        assert!(error.contains("unknown kernel"), "{error}");
    }
}
