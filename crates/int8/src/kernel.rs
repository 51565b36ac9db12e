//! The kernels: which exist, which this CPU can run, and what each of them
//! provides to the code that is common to all of them.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

pub(crate) use self::portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::x86_64::{Avx2, Avx512, Avx512Vnni, AvxVnni};

/// An implementation of the int8 sums and of the cell for some instruction
/// set. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kernel {
    /// Plain Rust, without any requirement on the CPU.
    Portable,
    /// AVX2 and FMA: 8-bit products by the magnitude of h, added in 16 and 32
    /// bits.
    Avx2,
    /// AVX-512 F and BW: as [`Kernel::Avx2`] in 512-bit registers.
    Avx512,
    /// AVX-VNNI: 8-bit dot products in 256-bit registers.
    AvxVnni,
    /// AVX-512 VNNI: 8-bit dot products in 512-bit registers.
    Avx512Vnni,
    /// AMX int8 tiles. Not implemented yet, so it is never available. The
    /// weights that are packed for [`Kernel::Avx512Vnni`] have the layout that
    /// tiles need: 16 rows of 64 bytes, 256 bytes apart in a panel.
    Amx,
}

/// A kernel name is unknown, or the kernel cannot run on this CPU.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KernelError {
    /// There is no kernel of this name.
    #[error("unknown kernel {name:?}; the kernels are {}", names(&Kernel::ALL))]
    Unknown {
        /// The name, cut to 32 characters.
        name: String,
    },
    /// This CPU, or this build, lacks what the kernel needs.
    #[error("kernel {kernel} is not available on this machine (available: {})", names(&Kernel::available()))]
    Unavailable {
        /// The kernel.
        kernel: Kernel,
    },
}

fn names(kernels: &[Kernel]) -> String {
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name()).collect();
    names.join(", ")
}

impl Kernel {
    /// All kernels, from the least to the most preferred.
    pub const ALL: [Self; 6] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx512,
        Self::AvxVnni,
        Self::Avx512Vnni,
        Self::Amx,
    ];

    /// Returns the name used in configuration and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::AvxVnni => "avxvnni",
            Self::Avx512Vnni => "vnni",
            Self::Amx => "amx",
        }
    }

    /// Returns whether this machine can run the kernel.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => AvxVnni::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Avx512Vnni::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::AvxVnni | Self::Avx512Vnni => false,
            Self::Amx => false,
        }
    }

    /// Returns the kernels that this machine can run, from the least to the
    /// most preferred; [`Kernel::Portable`] is always the first.
    pub fn available() -> Vec<Self> {
        let mut kernels = Self::ALL.to_vec();
        kernels.retain(|kernel| kernel.is_available());
        kernels
    }

    /// Returns the most preferred kernel that this machine can run.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernel {
    type Err = KernelError;

    /// Finds a kernel by its name; it need not be available.
    fn from_str(name: &str) -> Result<Self, KernelError> {
        let found = Self::ALL.into_iter().find(|kernel| kernel.name() == name);
        found.ok_or_else(|| KernelError::Unknown {
            name: name.chars().take(32).collect(),
        })
    }
}

/// A fixed number of values of one register, aligned as the register wants
/// it.
pub(crate) trait Block: Copy + Send + Sync + 'static {
    /// The type of a value.
    type Value;

    /// All zeros.
    const ZERO: Self;

    /// The values.
    fn values(&self) -> &[Self::Value];

    /// The values, to be written.
    fn values_mut(&mut self) -> &mut [Self::Value];
}

macro_rules! block {
    ($name:ident, $value:ty, $count:literal, $align:literal) => {
        #[doc = concat!(stringify!($count), " values in ", stringify!($align), " aligned bytes.")]
        #[derive(Clone, Copy, Debug)]
        #[repr(C, align($align))]
        pub(crate) struct $name(pub(crate) [$value; $count]);

        impl Block for $name {
            type Value = $value;

            const ZERO: Self = Self([0 as $value; $count]);

            fn values(&self) -> &[$value] {
                &self.0
            }

            fn values_mut(&mut self) -> &mut [$value] {
                &mut self.0
            }
        }
    };
}

block!(Int8x32, i8, 32, 32);
#[cfg(target_arch = "x86_64")]
block!(Int8x64, i8, 64, 64);
block!(Int32x8, i32, 8, 32);
#[cfg(target_arch = "x86_64")]
block!(Int32x16, i32, 16, 64);
block!(Float32x8, f32, 8, 32);
#[cfg(target_arch = "x86_64")]
block!(Float32x16, f32, 16, 64);

/// The registers of an instruction set and the operations on them that the
/// decode step needs. A value of such a type can only be obtained on a CPU
/// that has the instructions, so the operations are safe to call.
///
/// A register holds numbers of [`Self::LANES`] units (or characters). Sums run
/// over groups of [`DEPTH`] values of h.
pub(crate) trait Registers: Copy + Send + Sync + 'static {
    /// `LANES` int32 sums.
    type Ints: Copy;
    /// `LANES` float32 numbers.
    type Floats: Copy;
    /// [`DEPTH`] weights in every lane, in the form that [`Self::dot`] takes.
    type Weights: Copy;
    /// A group of h in every lane, in the form that [`Self::dot`] takes.
    type Hidden: Copy;
    /// [`DEPTH`] consecutive int8 weights of each lane, in memory.
    type WeightBlock: Block<Value = i8>;
    /// `LANES` int32 in memory.
    type IntBlock: Block<Value = i32>;
    /// `LANES` float32 in memory.
    type FloatBlock: Block<Value = f32>;

    /// Numbers in a register.
    const LANES: usize;
    /// What is added to every h where it is stored. For instructions that
    /// multiply unsigned by signed bytes it is 128; sums then have 128 times
    /// the sum of the weights too much, which the packed weights subtract in
    /// advance.
    const OFFSET: u8;
    /// Rows whose sums over four registers of weights fit the registers of the
    /// CPU; at most [`MAX_ROWS`].
    const ROWS: usize;

    /// Runs a task compiled for this instruction set.
    fn run<T: Task<Self>>(self, task: T) -> T::Output;

    /// Loads weights.
    fn load_weights(self, block: &Self::WeightBlock) -> Self::Weights;
    /// Puts a group of h into every lane.
    fn splat_hidden(self, group: u32) -> Self::Hidden;
    /// Adds to each lane of `sums` the products of its weights and h, exactly
    /// (modulo 2^32).
    fn dot(self, sums: Self::Ints, hidden: Self::Hidden, weights: Self::Weights) -> Self::Ints;
    /// The same integer in every lane.
    fn splat_ints(self, value: i32) -> Self::Ints;
    /// Loads integers.
    fn load_ints(self, block: &Self::IntBlock) -> Self::Ints;
    /// Stores integers.
    fn store_ints(self, ints: Self::Ints, block: &mut Self::IntBlock);
    /// Adds integers, modulo 2^32.
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// Loads floats.
    fn load_floats(self, block: &Self::FloatBlock) -> Self::Floats;
    /// Stores floats.
    fn store_floats(self, floats: Self::Floats, block: &mut Self::FloatBlock);
    /// The same number in every lane.
    fn splat(self, value: f32) -> Self::Floats;
    /// Converts integers to the nearest float, halves to even.
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;
    /// `a * b`.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `a / b`.
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller of two numbers that are not NaN.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The larger of two numbers that are not NaN.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Rounds to the nearest integer, halves to even, and stores the result,
    /// which is from -127 to 127, as `LANES / DEPTH` groups of h, with the offset.
    fn store_hidden(self, h: Self::Floats, groups: &mut [u32]);
}

/// Number of values of h in a group, which has 32 bits.
pub(crate) const DEPTH: usize = 4;

/// Largest [`Registers::ROWS`].
pub(crate) const MAX_ROWS: usize = 6;

/// Something to be compiled for an instruction set. `run` of an implementation
/// must be `#[inline(always)]`, or it is compiled without the instructions.
pub(crate) trait Task<R: Registers> {
    /// The result.
    type Output;

    /// Does it.
    fn run(self, registers: R) -> Self::Output;
}

/// Writes values of h, each plus `offset`, as groups; what the last groups have
/// room for beyond `h` becomes an h of 0.
pub(crate) fn encode(h: &[i8], offset: u8, groups: &mut [u32]) {
    let mut h = h.iter().copied().chain(std::iter::repeat(0));
    for group in groups {
        let bytes = std::array::from_fn(|_| (h.next().unwrap_or(0) as u8).wrapping_add(offset));
        *group = u32::from_le_bytes(bytes);
    }
}

/// Reads values of h back; there are enough groups for them.
pub(crate) fn decode(groups: &[u32], offset: u8, h: &mut [i8]) {
    for (h, group) in h.chunks_mut(DEPTH).zip(groups) {
        for (h, byte) in h.iter_mut().zip(group.to_le_bytes()) {
            *h = byte.wrapping_sub(offset) as i8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_found_by_its_name_and_unknown_names_are_listed() {
        for kernel in Kernel::ALL {
            assert_eq!(kernel.to_string().parse(), Ok(kernel));
        }
        let error = "sse9".parse::<Kernel>().expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "unknown kernel \"sse9\"; the kernels are portable, avx2, avx512, avxvnni, vnni, amx"
        );
    }

    #[test]
    fn the_portable_kernel_is_always_available_and_the_best_one_is_too() {
        let available = Kernel::available();
        assert_eq!(available.first(), Some(&Kernel::Portable));
        assert!(available.contains(&Kernel::best()));
        let error = KernelError::Unavailable {
            kernel: Kernel::Amx,
        };
        assert!(
            error
                .to_string()
                .starts_with("kernel amx is not available on this machine (available: portable")
        );
    }

    #[test]
    fn h_survives_storage_with_and_without_an_offset() {
        let h: Vec<i8> = (-127..=127).collect();
        for offset in [0, 128] {
            let mut groups = [1; 64];
            encode(&h, offset, &mut groups);
            assert_eq!(groups[63].to_le_bytes()[3], offset);
            let mut read = [1; 255];
            decode(&groups, offset, &mut read);
            assert_eq!(read[..], h);
        }
    }
}
