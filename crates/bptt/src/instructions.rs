//! The instruction sets that training can compute with, and the selection of one
//! for a precision.

use std::fmt;

use charlstm_model::learner::TrainingPrecision;
use pulp::Arch;

#[cfg(target_arch = "x86_64")]
use super::product::{Amx, Avx512Bf16};
use super::product::{Arithmetic, Float32, RoundedBf16};

/// How products are computed. The bits of a training depend on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// float32 in the widest registers of this CPU.
    Float32(Registers),
    /// Values rounded to bfloat16 and multiplied as float32: for CPUs without
    /// instructions for bfloat16, and slower than float32.
    RoundedBf16(Registers),
    /// AVX512_BF16.
    Avx512Bf16,
    /// AMX tiles.
    Amx,
}

/// The registers of float32 products and pointwise operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// Plain Rust, without any requirement on the CPU.
    Portable,
    /// The widest of this CPU.
    Widest,
}

impl Registers {
    fn arch(self) -> Arch {
        match self {
            Self::Portable => Arch::Scalar,
            Self::Widest => Arch::new(),
        }
    }

    fn name(self) -> &'static str {
        match self.arch() {
            Arch::Scalar => "portable",
            #[cfg(target_arch = "x86_64")]
            Arch::V3(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Arch::V4(_) => "avx512",
            _ => "simd",
        }
    }
}

/// Something that is computed in any arithmetic.
pub(crate) trait OnArithmetic {
    type Output;

    fn run<A: Arithmetic>(self, arithmetic: A) -> Self::Output;
}

impl Instructions {
    /// Returns the fastest for a precision on this CPU.
    pub fn best(precision: TrainingPrecision) -> Self {
        match precision {
            TrainingPrecision::Float32 => Self::Float32(Registers::Widest),
            TrainingPrecision::Bf16 => {
                for instructions in [Self::Amx, Self::Avx512Bf16] {
                    if instructions.is_available() {
                        return instructions;
                    }
                }
                Self::RoundedBf16(Registers::Widest)
            }
        }
    }

    /// Returns whether this CPU has instructions for bfloat16, with which it
    /// trains faster than with float32.
    pub fn has_bf16() -> bool {
        Self::Amx.is_available() || Self::Avx512Bf16.is_available()
    }

    /// Returns all that this CPU has, of both precisions.
    pub fn available() -> Vec<Self> {
        let mut all = vec![
            Self::Float32(Registers::Portable),
            Self::Float32(Registers::Widest),
            Self::RoundedBf16(Registers::Portable),
            Self::RoundedBf16(Registers::Widest),
            Self::Avx512Bf16,
            Self::Amx,
        ];
        all.retain(|instructions| instructions.is_available());
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
            Self::Float32(registers) | Self::RoundedBf16(registers) => registers.name(),
            Self::Avx512Bf16 => "avx512_bf16",
            Self::Amx => "amx_bf16",
        }
    }

    /// Runs something in this arithmetic, or, if this CPU does not have the
    /// instructions, in the same precision.
    pub(crate) fn with_arithmetic<T: OnArithmetic>(self, task: T) -> T::Output {
        match self {
            Self::Float32(registers) => task.run(Float32(registers.arch())),
            Self::RoundedBf16(registers) => task.run(RoundedBf16(registers.arch())),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => match Avx512Bf16::detect() {
                Some(arithmetic) => task.run(arithmetic),
                None => task.run(RoundedBf16(Arch::new())),
            },
            #[cfg(target_arch = "x86_64")]
            Self::Amx => match Amx::detect() {
                Some(arithmetic) => task.run(arithmetic),
                None => task.run(RoundedBf16(Arch::new())),
            },
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Amx => task.run(RoundedBf16(Arch::new())),
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
