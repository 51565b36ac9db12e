//! Packs weights in the order in which the tensor cores read them: the fragment
//! order that `decode.cu` describes.

use charlstm_int8::{GATES, QuantisedMatrix};

use crate::launch::COLUMN_BLOCK;

/// Packs a matrix for the kernels. Group g of 32 packed rows consists of the
/// matrix rows `row(32 * g + 0..32)`; `None` is a row of zeros, as are all
/// columns from the matrix's own number of columns up to `columns`.
fn pack(
    matrix: &QuantisedMatrix,
    packed_rows: usize,
    columns: usize,
    row: impl Fn(usize) -> Option<usize>,
) -> Vec<i8> {
    let mut packed = Vec::with_capacity(packed_rows * columns);
    for group in 0..packed_rows / 32 {
        for column_block in 0..columns / COLUMN_BLOCK {
            for tile in 0..2 {
                for half in 0..2 {
                    for lane in 0..32 {
                        // Four registers of four bytes, as mma.m16n8k32 takes
                        // its first operand from a lane.
                        for register in 0..4 {
                            let packed_row = group * 32 + tile * 16 + lane / 4 + (register & 1) * 8;
                            let column = column_block * COLUMN_BLOCK
                                + lane % 4 * 16
                                + half * 8
                                + (register >> 1) * 4;
                            let weights = row(packed_row).map(|row| matrix.row(row));
                            packed.extend((column..column + 4).map(|column| {
                                weights
                                    .and_then(|weights| weights.get(column))
                                    .copied()
                                    .unwrap_or(0)
                            }));
                        }
                    }
                }
            }
        }
    }
    packed
}

/// Packs an LSTM matrix of `hidden` units, padded to `padded` units and columns:
/// a group is the four gates of 8 units.
pub(crate) fn pack_gates(matrix: &QuantisedMatrix, hidden: usize, padded: usize) -> Vec<i8> {
    pack(matrix, GATES * padded, padded, |row| {
        let (group, row) = (row / 32, row % 32);
        let (gate, unit) = (row / 8, group * 8 + row % 8);
        (unit < hidden).then_some(gate * hidden + unit)
    })
}

/// Packs the output layer's matrix, padded to `padded_rows` rows and
/// `padded_columns` columns.
pub(crate) fn pack_output(
    matrix: &QuantisedMatrix,
    padded_rows: usize,
    padded_columns: usize,
) -> Vec<i8> {
    pack(matrix, padded_rows, padded_columns, |row| {
        (row < matrix.rows()).then_some(row)
    })
}

/// Reorders rows of `[4 gates][hidden]` to `[padded][4 gates]`, padded with
/// zeros.
pub(crate) fn gates_by_unit(rows: &[f32], hidden: usize, padded: usize) -> Vec<f32> {
    rows.chunks_exact(GATES * hidden)
        .flat_map(|row| {
            (0..padded).flat_map(move |unit| {
                (0..GATES).map(move |gate| {
                    if unit < hidden {
                        row[gate * hidden + unit]
                    } else {
                        0.0
                    }
                })
            })
        })
        .collect()
}

/// Copies `values` and pads them with zeros.
pub(crate) fn padded(values: &[f32], length: usize) -> Vec<f32> {
    let mut values = values.to_vec();
    values.resize(length, 0.0);
    values
}
