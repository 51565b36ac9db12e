//! The arithmetic on registers: exact sums over h, and the cell.

use crate::activation::{TANH_DENOMINATOR, TANH_LIMIT, TANH_NUMERATOR};
use crate::kernel::{Block, MAX_ROWS, Registers};
use crate::packed::{PANEL, Panel, PanelFloats};

/// The sums of one row over one panel.
pub(crate) type Sums<R, const REGISTERS: usize> = [<R as Registers>::Ints; REGISTERS];

/// What is computed for a few rows together.
pub(crate) trait RowBlock<R: Registers> {
    /// Computes the rows `first..first + ROWS`. Implementations must be
    /// `#[inline(always)]`, so that they are compiled for the instruction set.
    fn compute<const ROWS: usize>(&mut self, registers: R, first: usize);
}

/// Computes the rows `0..rows` in blocks of at most [`Registers::ROWS`] rows,
/// of sizes that differ by one at most.
#[inline(always)]
pub(crate) fn for_row_blocks<R: Registers>(
    registers: R,
    rows: usize,
    block: &mut impl RowBlock<R>,
) {
    const { assert!(R::ROWS <= MAX_ROWS) };
    let mut blocks = rows.div_ceil(R::ROWS);
    let mut first = 0;
    while first < rows {
        let count = (rows - first).div_ceil(blocks);
        // What is not under the instruction set's limit is compiled away.
        match count {
            6 if R::ROWS >= 6 => block.compute::<6>(registers, first),
            5 if R::ROWS >= 5 => block.compute::<5>(registers, first),
            4 if R::ROWS >= 4 => block.compute::<4>(registers, first),
            3 if R::ROWS >= 3 => block.compute::<3>(registers, first),
            2 if R::ROWS >= 2 => block.compute::<2>(registers, first),
            _ => block.compute::<1>(registers, first),
        }
        first += count;
        blocks -= 1;
    }
}

/// Rows of h that a sum runs over, `[rows, stride]` groups.
#[derive(Clone, Copy)]
pub(crate) struct HiddenRows<'a> {
    pub(crate) groups: &'a [u32],
    pub(crate) stride: usize,
}

/// Returns the sums of the rows `first..first + ROWS` over a panel.
#[inline(always)]
pub(crate) fn sums<R: Registers, const ROWS: usize, const REGISTERS: usize>(
    registers: R,
    panel: Panel<'_, R, REGISTERS>,
    hidden: HiddenRows<'_>,
    first: usize,
) -> [Sums<R, REGISTERS>; ROWS] {
    let groups = panel.weights.len();
    let mut rows: [&[u32]; ROWS] = [&[]; ROWS];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = &hidden.groups[(first + r) * hidden.stride..][..groups];
    }
    let mut begin = [registers.splat_ints(0); REGISTERS];
    for (begin, block) in begin.iter_mut().zip(panel.begin) {
        *begin = registers.load_ints(block);
    }
    let mut sums = [begin; ROWS];
    if ROWS == 1 {
        // One row has too few sums to hide the latency of the instruction, so
        // that there are two of each.
        let mut others = [registers.splat_ints(0); REGISTERS];
        let (pairs, last) = panel.weights.as_chunks::<2>();
        let (hidden_pairs, hidden_last) = rows[0].as_chunks::<2>();
        for (weights, groups) in pairs.iter().zip(hidden_pairs) {
            let first = registers.splat_hidden(groups[0]);
            let second = registers.splat_hidden(groups[1]);
            for n in 0..REGISTERS {
                sums[0][n] =
                    registers.dot(sums[0][n], first, registers.load_weights(&weights[0][n]));
                others[n] =
                    registers.dot(others[n], second, registers.load_weights(&weights[1][n]));
            }
        }
        for (weights, group) in last.iter().zip(hidden_last) {
            let group = registers.splat_hidden(*group);
            for n in 0..REGISTERS {
                others[n] = registers.dot(others[n], group, registers.load_weights(&weights[n]));
            }
        }
        for n in 0..REGISTERS {
            sums[0][n] = registers.add_ints(sums[0][n], others[n]);
        }
        return sums;
    }
    for (group, weights) in panel.weights.iter().enumerate() {
        let mut hidden = [registers.splat_hidden(0); ROWS];
        for r in 0..ROWS {
            // SAFETY: every row has as many groups as `panel.weights` has
            // entries; they were cut to `groups` above.
            hidden[r] = registers.splat_hidden(unsafe { *rows[r].get_unchecked(group) });
        }
        // One register of weights at a time: with the whole panel in
        // registers there would be too few for the sums.
        for n in 0..REGISTERS {
            let weights = registers.load_weights(&weights[n]);
            for r in 0..ROWS {
                sums[r][n] = registers.dot(sums[r][n], hidden[r], weights);
            }
        }
    }
    sums
}

/// Returns `fma(float(sum), s', initial)`.
#[inline(always)]
pub(crate) fn scale<R: Registers, const REGISTERS: usize>(
    registers: R,
    sums: Sums<R, REGISTERS>,
    scales: &[R::FloatBlock; REGISTERS],
    mut initial: [R::Floats; REGISTERS],
) -> [R::Floats; REGISTERS] {
    for n in 0..REGISTERS {
        let scale = registers.load_floats(&scales[n]);
        initial[n] = registers.mul_add(registers.to_floats(sums[n]), scale, initial[n]);
    }
    initial
}

/// Loads the four registers of a panel.
#[inline(always)]
pub(crate) fn load<R: Registers>(registers: R, blocks: &PanelFloats<R>) -> [R::Floats; PANEL] {
    let mut loaded = [registers.splat(0.0); PANEL];
    for (loaded, block) in loaded.iter_mut().zip(blocks) {
        *loaded = registers.load_floats(block);
    }
    loaded
}

/// The cells of `LANES` units of one row: from the pre-activations and the old
/// c (in place) to the new c and the groups of the new h.
#[inline(always)]
pub(crate) fn cells<R: Registers>(
    registers: R,
    pre: [R::Floats; PANEL],
    c: &mut R::FloatBlock,
    h: &mut [u32],
) {
    let input = sigmoid(registers, pre[0]);
    let forget = sigmoid(registers, pre[1]);
    let candidate = tanh(registers, pre[2]);
    let output = sigmoid(registers, pre[3]);
    let kept = registers.mul(forget, registers.load_floats(c));
    let new_c = registers.mul_add(input, candidate, kept);
    registers.store_floats(new_c, c);
    let new_h = registers.mul(output, tanh(registers, new_c));
    registers.store_hidden(registers.mul(new_h, registers.splat(127.0)), h);
}

#[inline(always)]
fn tanh<R: Registers>(registers: R, x: R::Floats) -> R::Floats {
    let x = registers.min(x, registers.splat(TANH_LIMIT));
    let x = registers.max(x, registers.splat(-TANH_LIMIT));
    let square = registers.mul(x, x);
    let numerator = registers.mul(x, polynomial(registers, square, &TANH_NUMERATOR));
    registers.div(numerator, polynomial(registers, square, &TANH_DENOMINATOR))
}

#[inline(always)]
fn sigmoid<R: Registers>(registers: R, x: R::Floats) -> R::Floats {
    let half = registers.splat(0.5);
    let t = tanh(registers, registers.mul(x, half));
    registers.mul_add(t, half, half)
}

#[inline(always)]
fn polynomial<R: Registers>(registers: R, x: R::Floats, coefficients: &[f32]) -> R::Floats {
    let mut value = registers.splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        value = registers.mul_add(value, x, registers.splat(coefficient));
    }
    value
}

/// Copies the values of registers to a slice, which may end before they do.
#[inline(always)]
pub(crate) fn store<R: Registers, const REGISTERS: usize>(
    registers: R,
    floats: [R::Floats; REGISTERS],
    values: &mut [f32],
) {
    for (floats, values) in floats.into_iter().zip(values.chunks_mut(R::LANES)) {
        let mut block = R::FloatBlock::ZERO;
        registers.store_floats(floats, &mut block);
        values.copy_from_slice(&block.values()[..values.len()]);
    }
}
