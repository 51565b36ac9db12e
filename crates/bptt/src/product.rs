//! The matrix products of training: a few or many rows times a matrix that is
//! packed into panels, added to the output. One kernel serves all products;
//! the instruction sets differ in the tile of the output that they keep in
//! registers.
//!
//! Each output is a sum in the order of the inputs, in blocks of
//! [`INPUTS_AT_ONCE`]; it depends neither on the number of rows nor on the
//! range of panels that are computed together. The blocking follows Goto and
//! van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).

mod amx;
mod avx512_bf16;
mod float32;

pub(crate) use self::amx::Amx;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx512_bf16::Avx512Bf16;
pub(crate) use self::float32::FloatProducts;

use std::fmt::Debug;

use super::shared_buffer::Zero;

/// Inputs that are summed before the sums are added to the output: of this
/// many, a panel and the rows of a tile fit the L2 cache.
const INPUTS_AT_ONCE: usize = 1024;

/// Maximum number of columns of a panel.
pub(crate) const MAX_WIDTH: usize = 32;

/// A value as the products read it.
pub(crate) trait Element: Zero + Default + Debug + PartialEq {}

impl Element for f32 {}
/// The bits of a bfloat16.
impl Element for u16 {}

/// How products are computed: the type of their inputs and the instruction
/// set. Outputs and sums are always float32.
pub(crate) trait Arithmetic: Copy + Debug + Send + Sync + 'static {
    /// The type of the values that are multiplied.
    type Element: Element;

    /// Consecutive inputs that are stored next to each other in a panel.
    const GROUP: usize;

    /// The number of inputs of a product is a multiple of this; the values
    /// that pad it are zero.
    const INPUT_ALIGNMENT: usize;

    /// Returns the number of columns of a panel, at most [`MAX_WIDTH`].
    fn width(self) -> usize;

    /// Returns the registers for pointwise operations.
    fn arch(self) -> pulp::Arch;

    /// Rounds a value to the type that products read.
    fn round(value: f32) -> Self::Element;

    /// Rounds values to the type that products read.
    ///
    /// # Panics
    /// If the lengths differ.
    fn narrow(self, values: &[f32], out: &mut [Self::Element]) {
        assert_eq!(values.len(), out.len());
        self.arch().dispatch(
            #[inline(always)]
            || {
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = Self::round(value);
                }
            },
        );
    }

    /// Returns the value of an element; exact.
    fn widen(element: Self::Element) -> f32;

    /// Computes `out += rows * panels`.
    ///
    /// # Safety
    /// From `product.out` on there are `row_count` rows of `columns` values, each
    /// `out_stride` values after the one before it, which nobody else accesses
    /// during the call.
    ///
    /// # Panics
    /// If a slice is shorter than the sizes require.
    unsafe fn add_product(self, product: Product<'_, Self::Element>);

    /// Returns `inputs` rounded up to the alignment.
    fn padded(inputs: usize) -> usize {
        inputs.next_multiple_of(Self::INPUT_ALIGNMENT)
    }
}

/// What to multiply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a, E> {
    /// `[row_count, stride]`, of which the first `inputs` of each row are used.
    pub(crate) rows: &'a [E],
    pub(crate) row_count: usize,
    pub(crate) stride: usize,
    /// A multiple of the alignment.
    pub(crate) inputs: usize,
    /// `[panels, inputs / GROUP, width, GROUP]`.
    pub(crate) panels: &'a [E],
    /// Columns of the output; the last panel is padded.
    pub(crate) columns: usize,
    /// The first column of the first row.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
}

/// A tile of the output: some rows times one panel over some inputs.
#[derive(Clone, Copy)]
struct Tile<'a, E> {
    /// Starts at the first row and input; `[rows, stride]`.
    rows: &'a [E],
    row_count: usize,
    stride: usize,
    inputs: usize,
    /// `[inputs / GROUP, width, GROUP]`.
    panel: &'a [E],
    /// At most the width.
    columns: usize,
    out: *mut f32,
    out_stride: usize,
}

impl<'a, E: Element> Product<'a, E> {
    /// Divides the product into tiles of at most `rows_at_once` rows, and calls
    /// `compute` for each. The rows are divided evenly.
    #[inline(always)]
    fn for_each_tile(
        self,
        width: usize,
        rows_at_once: usize,
        mut compute: impl FnMut(Tile<'a, E>),
    ) {
        let Self {
            rows,
            row_count,
            stride,
            inputs,
            columns,
            ..
        } = self;
        if row_count == 0 || columns == 0 || inputs == 0 {
            return;
        }
        assert!(rows.len() >= (row_count - 1) * stride + inputs, "rows");
        assert!(stride >= inputs, "stride");
        let panel_count = columns.div_ceil(width);
        assert!(self.panels.len() >= panel_count * inputs * width, "panels");
        let blocks = row_count.div_ceil(rows_at_once);
        for first_input in (0..inputs).step_by(INPUTS_AT_ONCE) {
            let block_inputs = INPUTS_AT_ONCE.min(inputs - first_input);
            for panel in 0..panel_count {
                let start = (panel * inputs + first_input) * width;
                for block in 0..blocks {
                    let first_row = block * row_count / blocks;
                    let end_row = (block + 1) * row_count / blocks;
                    compute(Tile {
                        rows: &rows[first_row * stride + first_input..],
                        row_count: end_row - first_row,
                        stride,
                        inputs: block_inputs,
                        panel: &self.panels[start..][..block_inputs * width],
                        columns: width.min(columns - panel * width),
                        // SAFETY: the row and the column are inside the output,
                        // which the caller of `add_product` vouches for.
                        out: unsafe { self.out.add(first_row * self.out_stride + panel * width) },
                        out_stride: self.out_stride,
                    });
                }
            }
        }
    }
}

impl<E> Tile<'_, E> {
    /// Adds sums, `[row_count, MAX_WIDTH]`, to the output, one by one: for a
    /// panel that is not full.
    ///
    /// # Safety
    /// As for `Arithmetic::add_product`.
    unsafe fn add_partial(&self, sums: &[[f32; MAX_WIDTH]]) {
        for (row, sums) in sums.iter().enumerate().take(self.row_count) {
            for (column, sum) in sums.iter().enumerate().take(self.columns) {
                // SAFETY: the row and the column are inside the output.
                unsafe { *self.out.add(row * self.out_stride + column) += sum };
            }
        }
    }
}

/// Rounds to the nearest bfloat16, ties to even. NaN stays NaN.
#[inline(always)]
pub(crate) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    let is_nan = bits & 0x7FFF_FFFF > 0x7F80_0000;
    (if is_nan { quiet_nan } else { rounded }) as u16
}

/// Returns the value of a bfloat16.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests;
