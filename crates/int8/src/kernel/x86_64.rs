//! The kernels of x86-64 CPUs.
//!
//! The module is the only one with unsafe code for instructions. Each type
//! has a private field, so a value of it comes only from its `detect`, which
//! has checked the CPU.

mod bits256;
mod bits512;

pub(crate) use self::bits256::{Avx2, AvxVnni};
pub(crate) use self::bits512::{Avx512, Avx512Vnni};
