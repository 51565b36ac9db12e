//! The instruction sets that training can compute with, and the selection of one
//! for a precision.

use std::fmt;

use charlstm_model::kernels::FloatKernels;
use charlstm_model::learner::TrainingPrecision;
use pulp::Arch;

#[cfg(target_arch = "x86_64")]
use super::product::{Amx, Avx512Bf16};
use super::product::{Arithmetic, FloatProducts};

/// How products are computed. The bits of a training depend on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// float32.
    Float32(FloatKernels),
    /// Values rounded to bfloat16 and multiplied as float32: for CPUs without
    /// instructions for bfloat16, and slower than float32.
    RoundedBf16(FloatKernels),
    /// AVX512_BF16.
    Avx512Bf16,
    /// AMX tiles.
    Amx,
}

/// Something that is computed in any arithmetic.
pub(crate) trait OnArithmetic {
    type Output;

    fn run<A: Arithmetic>(self, arithmetic: A) -> Self::Output;
}

impl Instructions {
    /// Returns the fastest for a precision on this CPU, or, if `kernels` are not
    /// its fastest, those with these kernels.
    pub fn choose(precision: TrainingPrecision, kernels: FloatKernels) -> Self {
        match precision {
            TrainingPrecision::Float32 => Self::Float32(kernels),
            TrainingPrecision::Bf16 => {
                Self::for_bf16(kernels).unwrap_or(Self::RoundedBf16(kernels))
            }
        }
    }

    /// Returns the instructions for bfloat16, with which this CPU trains faster
    /// than with float32; `None` if it has none, or if `kernels` are not its
    /// fastest.
    pub fn for_bf16(kernels: FloatKernels) -> Option<Self> {
        if kernels != FloatKernels::best() {
            return None;
        }
        [Self::Amx, Self::Avx512Bf16]
            .into_iter()
            .find(|instructions| instructions.is_available())
    }

    /// Returns all that this CPU has, of both precisions.
    pub fn available() -> Vec<Self> {
        let kernels = FloatKernels::available();
        let mut all: Vec<Self> = kernels.iter().copied().map(Self::Float32).collect();
        all.extend(kernels.into_iter().map(Self::RoundedBf16));
        all.extend(
            [Self::Avx512Bf16, Self::Amx]
                .into_iter()
                .filter(|instructions| instructions.is_available()),
        );
        all
    }

    fn is_available(self) -> bool {
        match self {
            Self::Float32(_) | Self::RoundedBf16(_) => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Avx512Bf16::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Amx::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Amx => false,
        }
    }

    /// Returns the name in reports and checkpoints: with the same name and
    /// precision, a training has the same bits.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32(kernels) | Self::RoundedBf16(kernels) => kernels.name(),
            Self::Avx512Bf16 => "avx512_bf16",
            Self::Amx => "amx_bf16",
        }
    }

    /// Runs something in this arithmetic, or, if this CPU does not have the
    /// instructions, in the same precision.
    pub(crate) fn with_arithmetic<T: OnArithmetic>(self, task: T) -> T::Output {
        match self {
            Self::Float32(kernels) => task.run(FloatProducts::<false>(kernels.arch())),
            Self::RoundedBf16(kernels) => task.run(FloatProducts::<true>(kernels.arch())),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => match Avx512Bf16::detect() {
                Some(arithmetic) => task.run(arithmetic),
                None => task.run(FloatProducts::<true>(Arch::new())),
            },
            #[cfg(target_arch = "x86_64")]
            Self::Amx => match Amx::detect() {
                Some(arithmetic) => task.run(arithmetic),
                None => task.run(FloatProducts::<true>(Arch::new())),
            },
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Amx => task.run(FloatProducts::<true>(Arch::new())),
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
