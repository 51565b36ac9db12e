//! Memory that libtorch and our own loops both work on.

use tch::{Device, Kind, TchError, Tensor};

/// A contiguous float32 tensor on the CPU whose numbers are also a slice.
/// Other tensors may view the same memory; whoever holds a `SharedBuffer` must see
/// to it that no other thread computes on those while the slice is borrowed.
#[derive(Debug)]
pub(super) struct SharedBuffer {
    tensor: Tensor,
    len: usize,
}

impl SharedBuffer {
    /// Zeros of a shape.
    pub(super) fn zeros(shape: &[usize]) -> Result<Self, TchError> {
        let dimensions: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        Ok(Self {
            tensor: Tensor::f_zeros(dimensions, (Kind::Float, Device::Cpu))?,
            len: shape.iter().product(),
        })
    }

    /// The tensor.
    pub(super) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// A second handle on the same memory.
    pub(super) fn share(&self) -> Self {
        Self {
            tensor: self.tensor.shallow_clone(),
            len: self.len,
        }
    }

    /// The numbers.
    pub(super) fn numbers(&self) -> &[f32] {
        // SAFETY: `zeros` makes contiguous float32 memory on the CPU, of this
        // length, which lives as long as the tensor.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), self.len) }
    }

    /// The numbers, to be changed.
    pub(super) fn numbers_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `numbers`; that nobody else works on the memory
        // meanwhile is the contract of the type.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast(), self.len) }
    }
}
