//! Tiles in memory, for tests on CPUs without AMX.

use super::{TILE, TILE_INPUTS, Tiles, from_bf16};

/// The tiles in memory: what the instructions do, for tests on CPUs without AMX.
#[derive(Debug)]
pub(crate) struct EmulatedTiles {
    rows: [usize; 2],
    /// `[block][column][row][column of the tile]`.
    sums: [[[[f32; TILE]; TILE]; 2]; 2],
    /// `[block][row][input]`.
    inputs: [[[u16; TILE_INPUTS]; TILE]; 2],
    /// `[column][pair][value]`.
    columns: [[[u16; TILE_INPUTS]; TILE]; 2],
}

impl EmulatedTiles {
    /// Tiles that are not configured.
    pub(crate) fn new() -> Self {
        Self {
            rows: [0; 2],
            sums: [[[[f32::NAN; TILE]; TILE]; 2]; 2],
            inputs: [[[0; TILE_INPUTS]; TILE]; 2],
            columns: [[[0; TILE_INPUTS]; TILE]; 2],
        }
    }
}

impl Tiles for EmulatedTiles {
    fn configure(&mut self, rows: [usize; 2]) {
        assert!(
            rows[0] >= 1 && rows.iter().all(|&rows| rows <= TILE),
            "{rows:?}"
        );
        *self = Self {
            rows,
            ..Self::new()
        };
    }

    fn zero(&mut self, block: usize) {
        self.sums[block] = [[[0.0; TILE]; TILE]; 2];
    }

    unsafe fn load_sums(&mut self, block: usize, column: usize, values: *const f32, stride: usize) {
        assert!(self.rows[block] > 0, "the tile is not configured");
        for row in 0..self.rows[block] {
            // SAFETY: the caller vouches for the values.
            let values = unsafe { std::slice::from_raw_parts(values.add(row * stride), TILE) };
            self.sums[block][column][row].copy_from_slice(values);
        }
    }

    unsafe fn store_sums(&mut self, block: usize, column: usize, values: *mut f32, stride: usize) {
        assert!(self.rows[block] > 0, "the tile is not configured");
        for row in 0..self.rows[block] {
            // SAFETY: the caller vouches for the values.
            let values = unsafe { std::slice::from_raw_parts_mut(values.add(row * stride), TILE) };
            values.copy_from_slice(&self.sums[block][column][row]);
        }
    }

    unsafe fn load_rows(&mut self, block: usize, values: *const u16, stride: usize) {
        assert!(self.rows[block] > 0, "the tile is not configured");
        for row in 0..self.rows[block] {
            // SAFETY: the caller vouches for the values.
            let values =
                unsafe { std::slice::from_raw_parts(values.add(row * stride), TILE_INPUTS) };
            self.inputs[block][row].copy_from_slice(values);
        }
    }

    unsafe fn load_columns(&mut self, column: usize, values: *const u16, stride: usize) {
        for pair in 0..TILE {
            // SAFETY: the caller vouches for the values.
            let values =
                unsafe { std::slice::from_raw_parts(values.add(pair * stride), TILE_INPUTS) };
            self.columns[column][pair].copy_from_slice(values);
        }
    }

    fn multiply(&mut self, block: usize, column: usize) {
        for row in 0..self.rows[block] {
            for (at, sum) in self.sums[block][column][row].iter_mut().enumerate() {
                for pair in 0..TILE {
                    for part in 0..2 {
                        let input = from_bf16(self.inputs[block][row][2 * pair + part]);
                        let weight = from_bf16(self.columns[column][pair][2 * at + part]);
                        *sum = input.mul_add(weight, *sum);
                    }
                }
            }
        }
    }
}
