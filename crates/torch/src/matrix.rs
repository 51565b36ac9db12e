//! Matrix operations of libtorch on slices of float32 values in CPU memory.
//!
//! All memory belongs to Rust. The tensors that view it are created and
//! dropped within one function of this module, so that the borrow checker
//! knows every reader and writer. The functions block the calling thread;
//! `process_state` says how many threads libtorch uses.

use aligned_vec::{ABox, ConstAlign, avec};
use tch::{Device, Kind, TchError, Tensor};

/// Alignment of a buffer in bytes: a cache line and the widest SIMD register.
/// The matrix library gives the same bits on every run only if its operands
/// have the same alignment on every run.
const ALIGNMENT: usize = 64;

/// Values of float32 in aligned memory.
pub(crate) type Buffer = ABox<[f32], ConstAlign<ALIGNMENT>>;

/// Allocates a buffer of `len` zeros.
pub(crate) fn zeros(len: usize) -> Buffer {
    avec![[ALIGNMENT]| 0.0; len].into_boxed_slice()
}

/// A matrix in a borrowed slice, row by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    /// Views `values` as `[rows, columns]`.
    ///
    /// # Panics
    /// If there are not `rows * columns` values.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "{rows} x {columns} values");
        Self {
            values,
            rows,
            columns,
        }
    }

    /// Returns a tensor on the memory of this matrix.
    ///
    /// # Safety
    /// The caller drops the tensor, and every tensor that shares its memory,
    /// before the borrow `'a` ends, and lets no operation write to them.
    unsafe fn tensor(self) -> Result<Tensor, TchError> {
        // SAFETY: the slice has `rows * columns` values (`new`); the caller
        // keeps the promises about its lifetime and about writing.
        unsafe { tensor_at(self.values.as_ptr(), &[self.rows, self.columns]) }
    }
}

/// Returns a tensor on the memory of a vector.
///
/// # Safety
/// As [`Matrix::tensor`].
unsafe fn vector(values: &[f32]) -> Result<Tensor, TchError> {
    // SAFETY: the shape is the length of the slice; the caller keeps the rest.
    unsafe { tensor_at(values.as_ptr(), &[values.len()]) }
}

/// Returns a tensor that operations may write to.
///
/// # Safety
/// The caller drops the tensor, and every tensor that shares its memory, before
/// the borrow of `values` ends.
///
/// # Panics
/// If there are not `rows * columns` values. A wrong size would make libtorch
/// resize the tensor, and with it abandon the memory.
unsafe fn output(values: &mut [f32], rows: usize, columns: usize) -> Result<Tensor, TchError> {
    assert_eq!(values.len(), rows * columns, "{rows} x {columns} values");
    // SAFETY: the slice has `rows * columns` values; the caller keeps the rest.
    unsafe { tensor_at(values.as_mut_ptr(), &[rows, columns]) }
}

/// Returns a contiguous tensor on `values`.
///
/// # Safety
/// From `values` on there are as many float32 values as the shape says. They
/// outlive the tensor and every tensor that shares its memory. Nobody writes
/// to them meanwhile, or, if the tensor is written to, accesses them.
unsafe fn tensor_at(values: *const f32, shape: &[usize]) -> Result<Tensor, TchError> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension] as i64;
    }
    let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    // SAFETY: shape and strides cover exactly the values that the caller
    // vouches for.
    unsafe { Tensor::f_from_blob(values.cast(), &shape, &strides, Kind::Float, Device::Cpu) }
}

/// Computes a linear layer: `out = input * weight^T + bias`.
///
/// `input` is `[rows, inputs]`, `weight` `[outputs, inputs]`, `bias`
/// `[outputs]`, `out` `[rows, outputs]`.
///
/// # Errors
/// libtorch failed.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn linear(
    input: Matrix<'_>,
    weight: Matrix<'_>,
    bias: &[f32],
    out: &mut [f32],
) -> Result<(), TchError> {
    assert_eq!(input.columns, weight.columns, "inputs");
    assert_eq!(bias.len(), weight.rows, "outputs");
    // SAFETY: all tensors end with this function, and only `out` is written to.
    unsafe {
        let out = output(out, input.rows, weight.rows)?;
        let transposed = weight.tensor()?.f_tr()?.f_contiguous()?;
        let _ = vector(bias)?.f_addmm_out(&out, &input.tensor()?, &transposed)?;
    }
    Ok(())
}

/// Computes `out = a * b`.
///
/// `a` is `[m, k]`, `b` `[k, n]`, `out` `[m, n]`.
///
/// # Errors
/// libtorch failed.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn product(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32]) -> Result<(), TchError> {
    assert_eq!(a.columns, b.rows, "inner dimension");
    // SAFETY: all tensors end with this function, and only `out` is written to.
    unsafe {
        let out = output(out, a.rows, b.columns)?;
        let _ = a.tensor()?.f_mm_out(&out, &b.tensor()?)?;
    }
    Ok(())
}

/// Computes `out = a^T * b`.
///
/// `a` is `[k, m]`, `b` `[k, n]`, `out` `[m, n]`.
///
/// # Errors
/// libtorch failed.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn transposed_product(
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
) -> Result<(), TchError> {
    assert_eq!(a.rows, b.rows, "inner dimension");
    // SAFETY: all tensors end with this function, and only `out` is written to.
    unsafe {
        let out = output(out, a.columns, b.columns)?;
        let _ = a.tensor()?.f_tr()?.f_mm_out(&out, &b.tensor()?)?;
    }
    Ok(())
}

/// Writes the transpose of `a`, `[m, n]`, to `out`, `[n, m]`.
///
/// # Errors
/// libtorch failed.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn transpose(a: Matrix<'_>, out: &mut [f32]) -> Result<(), TchError> {
    // SAFETY: all tensors end with this function, and only `out` is written to.
    unsafe { output(out, a.columns, a.rows)?.f_copy_(&a.tensor()?.f_tr()?) }
}

/// Writes the sum of each column of `a`, `[m, n]`, to `out`, `[n]`.
///
/// # Errors
/// libtorch failed.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn column_sums(a: Matrix<'_>, out: &mut [f32]) -> Result<(), TchError> {
    assert_eq!(a.columns, out.len(), "columns");
    // SAFETY: the tensor ends with this function and is not written to.
    let sums = unsafe { a.tensor()?.f_sum_dim_intlist(0, false, Kind::Float)? };
    let count = out.len();
    sums.f_copy_data(out, count)
}

/// Writes the column `tokens[r]` of `weight` plus `bias` to row `r` of `out`:
/// a linear layer whose input rows are one-hot vectors.
///
/// `weight` is `[outputs, vocabulary]`, `bias` `[outputs]`, `out`
/// `[tokens.len(), outputs]`.
///
/// # Errors
/// A token is outside the vocabulary, or libtorch failed.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn embed(
    weight: Matrix<'_>,
    bias: &[f32],
    tokens: &[u32],
    out: &mut [f32],
) -> Result<(), TchError> {
    assert_eq!(bias.len(), weight.rows, "outputs");
    let indices: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    let indices = Tensor::f_from_slice(&indices)?;
    // SAFETY: all tensors end with this function, and only `out` is written to.
    unsafe {
        let out = output(out, tokens.len(), weight.rows)?;
        let table = weight.tensor()?.f_tr()?.f_add(&vector(bias)?)?;
        let _ = table
            .f_contiguous()?
            .f_index_select_out(&out, 0, &indices)?;
    }
    Ok(())
}

/// Replaces each row of `values`, `[rows, columns]`, by the logarithm of its
/// softmax.
///
/// # Errors
/// libtorch failed.
///
/// # Panics
/// If the shape does not match.
pub(crate) fn log_softmax(values: &mut [f32], rows: usize, columns: usize) -> Result<(), TchError> {
    // SAFETY: all tensors end with this function.
    unsafe {
        let mut values = output(values, rows, columns)?;
        let result = values.f_log_softmax(-1, Kind::Float)?;
        values.f_copy_(&result)
    }
}

/// Replaces each value by its exponential.
///
/// # Errors
/// libtorch failed.
pub(crate) fn exp(values: &mut [f32]) -> Result<(), TchError> {
    let count = values.len();
    // SAFETY: all tensors end with this function.
    unsafe {
        let _ = output(values, 1, count)?.f_exp_()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[2, 3]`.
    const A: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    /// `[3, 2]`.
    const B: [f32; 6] = [1.0, 0.0, 2.0, 1.0, 0.0, 3.0];

    #[test]
    fn products_are_those_of_the_textbook() {
        let mut out = [f32::NAN; 4];
        product(Matrix::new(&A, 2, 3), Matrix::new(&B, 3, 2), &mut out).expect("a product");
        assert_eq!(out, [5.0, 11.0, 14.0, 23.0]);
        let mut out = [f32::NAN; 9];
        let a = Matrix::new(&A, 2, 3);
        transposed_product(a, a, &mut out).expect("a product");
        assert_eq!(out, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
        let mut out = [f32::NAN; 4];
        let weight = Matrix::new(&A, 2, 3);
        linear(weight, weight, &[1.0, -1.0], &mut out).expect("a product");
        assert_eq!(out, [15.0, 31.0, 33.0, 76.0]);
    }

    #[test]
    fn pointwise_operations_are_those_of_the_textbook() {
        let mut out = [f32::NAN; 6];
        transpose(Matrix::new(&A, 2, 3), &mut out).expect("a copy");
        assert_eq!(out, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let mut out = [f32::NAN; 3];
        column_sums(Matrix::new(&A, 2, 3), &mut out).expect("sums");
        assert_eq!(out, [5.0, 7.0, 9.0]);
        let mut out = [f32::NAN; 4];
        embed(Matrix::new(&A, 2, 3), &[10.0, 20.0], &[2, 0], &mut out).expect("columns");
        assert_eq!(out, [13.0, 26.0, 11.0, 24.0]);
        let mut row = [2.0f32.ln(), 2.0f32.ln(), 0.0, 0.0];
        log_softmax(&mut row, 2, 2).expect("a softmax");
        exp(&mut row).expect("an exponential");
        assert!(row.iter().all(|share| (share - 0.5).abs() < 1e-6));
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_an_error() {
        let mut out = [0.0; 2];
        assert!(embed(Matrix::new(&A, 2, 3), &[0.0; 2], &[3], &mut out).is_err());
    }

    #[test]
    fn buffers_are_aligned_to_cache_lines() {
        for len in [1, 7, 1000] {
            assert!(zeros(len).as_ptr().addr().is_multiple_of(ALIGNMENT));
        }
    }
}
