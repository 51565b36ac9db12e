//! Packs matrices into the panels that products read, once per optimizer step.

use std::ops::Range;

use super::product::{Arithmetic, Element, MAX_WIDTH};

/// Packs columns of the transpose of `matrix`, `[columns, inputs]` (as PyTorch
/// stores a linear layer), into panels: panel `p` has the columns from `p *
/// width` on, relative to `columns.start`. `narrowed` is scratch.
///
/// # Panics
/// If a slice is shorter than the sizes require.
pub(crate) fn pack_rows<A: Arithmetic>(
    arithmetic: A,
    matrix: &[f32],
    inputs: usize,
    columns: Range<usize>,
    panels: &mut [A::Element],
    narrowed: &mut Vec<A::Element>,
) {
    let width = arithmetic.width();
    let padded = A::padded(inputs);
    narrowed.clear();
    narrowed.resize(width * padded, A::Element::default());
    for (panel, first) in panels
        .chunks_exact_mut(width * padded)
        .zip(columns.clone().step_by(width))
    {
        let count = width.min(columns.end - first);
        for (row, out) in narrowed.chunks_exact_mut(padded).enumerate() {
            if row < count {
                let row = &matrix[(first + row) * inputs..][..inputs];
                arithmetic.narrow(row, &mut out[..inputs]);
            } else {
                out.fill(A::Element::default());
            }
        }
        interleave::<A>(arithmetic, narrowed, padded, panel);
    }
}

/// Writes `rows`, `[width, inputs]`, to a panel, `[inputs / GROUP, width, GROUP]`.
fn interleave<A: Arithmetic>(
    arithmetic: A,
    rows: &[A::Element],
    inputs: usize,
    panel: &mut [A::Element],
) {
    // In blocks of groups that fill a cache line of each row.
    let width = arithmetic.width();
    let at_once = BLOCK / A::GROUP;
    let groups = inputs / A::GROUP;
    for first in (0..groups).step_by(at_once) {
        let count = at_once.min(groups - first);
        let out = &mut panel[first * width * A::GROUP..][..count * width * A::GROUP];
        let mut lines = [[A::Element::default(); BLOCK]; MAX_WIDTH];
        for (line, row) in lines.iter_mut().zip(rows.chunks_exact(inputs)) {
            let values = &row[first * A::GROUP..][..count * A::GROUP];
            line[..values.len()].copy_from_slice(values);
        }
        for (group, out) in out.chunks_exact_mut(width * A::GROUP).enumerate() {
            for (out, line) in out.chunks_exact_mut(A::GROUP).zip(&lines) {
                out.copy_from_slice(&line[group * A::GROUP..][..A::GROUP]);
            }
        }
    }
}

/// Packs columns of `matrix`, `[inputs, stride]`, into panels; what pads them is
/// zero.
///
/// # Panics
/// If a slice is shorter than the sizes require.
pub(crate) fn pack_columns<A: Arithmetic>(
    arithmetic: A,
    matrix: &[A::Element],
    inputs: usize,
    stride: usize,
    columns: Range<usize>,
    panels: &mut [A::Element],
) {
    let matrix = Columns {
        values: matrix,
        inputs,
        stride,
        columns,
    };
    arithmetic.arch().dispatch(
        #[inline(always)]
        || matrix.pack(arithmetic, panels, |element| element),
    );
}

/// Packs columns of float32 weights, `[inputs, stride]`, as [`pack_columns`] does.
///
/// # Panics
/// If a slice is shorter than the sizes require.
pub(crate) fn pack_weight_columns<A: Arithmetic>(
    arithmetic: A,
    weights: &[f32],
    inputs: usize,
    stride: usize,
    columns: Range<usize>,
    panels: &mut [A::Element],
) {
    let matrix = Columns {
        values: weights,
        inputs,
        stride,
        columns,
    };
    arithmetic.arch().dispatch(
        #[inline(always)]
        || matrix.pack(arithmetic, panels, A::round),
    );
}

/// Columns of a matrix `[inputs, stride]`.
struct Columns<'a, T> {
    values: &'a [T],
    inputs: usize,
    stride: usize,
    columns: Range<usize>,
}

impl<T: Copy + Default> Columns<'_, T> {
    #[inline(always)]
    fn pack<A: Arithmetic>(
        &self,
        arithmetic: A,
        panels: &mut [A::Element],
        round: impl Fn(T) -> A::Element,
    ) {
        let width = arithmetic.width();
        let zeros = [T::default(); MAX_WIDTH];
        for (panel, first) in panels
            .chunks_exact_mut(width * A::padded(self.inputs))
            .zip(self.columns.clone().step_by(width))
        {
            let count = width.min(self.columns.end - first);
            let row = |input: usize| {
                if input < self.inputs {
                    &self.values[input * self.stride + first..][..count]
                } else {
                    &zeros[..count]
                }
            };
            for (group, out) in panel.chunks_exact_mut(width * A::GROUP).enumerate() {
                if count < width {
                    out[count * A::GROUP..].fill(A::Element::default());
                }
                // Written out for both sizes of groups, so that it is vectorised.
                if A::GROUP == 1 {
                    for (out, &value) in out.iter_mut().zip(row(group)) {
                        *out = round(value);
                    }
                } else {
                    let (pairs, _) = out.as_chunks_mut::<2>();
                    let (even, odd) = (row(2 * group), row(2 * group + 1));
                    for ((out, &even), &odd) in pairs.iter_mut().zip(even).zip(odd) {
                        *out = [round(even), round(odd)];
                    }
                }
            }
        }
    }
}

/// Rows and columns that are transposed at a time.
const BLOCK: usize = 32;

/// Writes columns of `matrix`, `[rows, stride]`, as rows: `out`, `[columns,
/// out_stride]`, of which the first `rows` values of each row are set.
///
/// # Panics
/// If a slice is shorter than the sizes require.
pub(crate) fn transpose<E: Element>(
    matrix: &[E],
    rows: usize,
    stride: usize,
    columns: Range<usize>,
    out: &mut [E],
    out_stride: usize,
) {
    // Whole cache lines are read and written; in between is a block whose rows
    // are close to each other, unlike those of the matrix, which may all have the
    // same place in the cache.
    let mut block = [[E::default(); BLOCK]; BLOCK];
    for first_row in (0..rows).step_by(BLOCK) {
        let row_count = BLOCK.min(rows - first_row);
        for first in columns.clone().step_by(BLOCK) {
            let count = BLOCK.min(columns.end - first);
            for (row, block) in block.iter_mut().enumerate().take(row_count) {
                let start = (first_row + row) * stride + first;
                block[..count].copy_from_slice(&matrix[start..start + count]);
            }
            for column in 0..count {
                let mut line = [E::default(); BLOCK];
                for (value, block) in line.iter_mut().zip(&block) {
                    *value = block[column];
                }
                let start = (first - columns.start + column) * out_stride + first_row;
                out[start..start + row_count].copy_from_slice(&line[..row_count]);
            }
        }
    }
}
