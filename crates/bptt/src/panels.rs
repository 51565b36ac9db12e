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
    let width = arithmetic.width();
    // In blocks that fit a few cache lines.
    const BLOCK: usize = 16;
    for first in (0..inputs / A::GROUP).step_by(BLOCK) {
        let end = (first + BLOCK).min(inputs / A::GROUP);
        for row in 0..width {
            let row_values = &rows[row * inputs + first * A::GROUP..row * inputs + end * A::GROUP];
            let out = &mut panel[(first * width + row) * A::GROUP..];
            for (group, values) in row_values.chunks_exact(A::GROUP).enumerate() {
                out[group * width * A::GROUP..][..A::GROUP].copy_from_slice(values);
            }
        }
    }
}

/// Packs columns of `matrix`, `[inputs, stride]`, of which `inputs` rows exist,
/// into panels. The columns from `column_count` on are zero.
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
    let width = arithmetic.width();
    let padded = A::padded(inputs);
    arithmetic.arch().dispatch(
        #[inline(always)]
        || {
            for (panel, first) in panels
                .chunks_exact_mut(width * padded)
                .zip(columns.clone().step_by(width))
            {
                let count = width.min(columns.end - first);
                for (group, out) in panel.chunks_exact_mut(width * A::GROUP).enumerate() {
                    if count < width || (group + 1) * A::GROUP > inputs {
                        out.fill(A::Element::default());
                    }
                    for part in 0..A::GROUP {
                        let input = group * A::GROUP + part;
                        if input >= inputs {
                            break;
                        }
                        let row = &matrix[input * stride + first..][..count];
                        for (out, &value) in out.chunks_exact_mut(A::GROUP).zip(row) {
                            out[part] = value;
                        }
                    }
                }
            }
        },
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
    let width = arithmetic.width();
    let mut narrowed = [A::Element::default(); MAX_WIDTH];
    for (panel, first) in panels
        .chunks_exact_mut(width * A::padded(inputs))
        .zip(columns.clone().step_by(width))
    {
        let count = width.min(columns.end - first);
        for (group, out) in panel.chunks_exact_mut(width * A::GROUP).enumerate() {
            for part in 0..A::GROUP {
                let input = group * A::GROUP + part;
                narrowed.fill(A::Element::default());
                if input < inputs {
                    let row = &weights[input * stride + first..][..count];
                    arithmetic.narrow(row, &mut narrowed[..count]);
                }
                for (out, &value) in out.chunks_exact_mut(A::GROUP).zip(&narrowed) {
                    out[part] = value;
                }
            }
        }
    }
}

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
    // In blocks whose rows and columns fit the L1 cache.
    const BLOCK: usize = 32;
    for first_row in (0..rows).step_by(BLOCK) {
        let end_row = (first_row + BLOCK).min(rows);
        for first in columns.clone().step_by(BLOCK) {
            let end = (first + BLOCK).min(columns.end);
            for column in first..end {
                let out = &mut out[(column - columns.start) * out_stride..];
                for (row, out) in (first_row..end_row).zip(&mut out[first_row..end_row]) {
                    *out = matrix[row * stride + column];
                }
            }
        }
    }
}
