//! Products of bfloat16 values on AMX tiles: 32 x 32 outputs in four tiles of
//! 16 x 16, from two tiles of rows and two of columns (Intel Architecture
//! Instruction Set Extensions Programming Reference, chapter 3). The loops are
//! generic over who executes the tile instructions, so that they are tested on
//! CPUs without AMX.

#[cfg(test)]
mod emulated;
#[cfg(target_arch = "x86_64")]
mod hardware;

use std::fmt::Debug;

use pulp::Arch;

#[cfg(test)]
pub(crate) use self::emulated::EmulatedTiles;
use super::{Arithmetic, MAX_WIDTH, Product, Tile, from_bf16, to_bf16};

/// Rows of a tile, and columns of float32.
const TILE: usize = 16;
/// Inputs that one instruction multiplies: the bfloat16 values of a tile's row.
const TILE_INPUTS: usize = 32;
/// Columns of a panel.
const WIDTH: usize = 2 * TILE;

/// The tiles and the instructions on them. Tiles 0 to 3 are the sums (row block
/// 0 with columns 0 and 1, then row block 1), 4 and 5 the rows, 6 and 7 the
/// columns.
pub(crate) trait Tiles: Debug {
    /// Sets the number of rows of the two row blocks, each at most 16, and
    /// thereby the shapes of all tiles. Their values are undefined afterwards.
    fn configure(&mut self, rows: [usize; 2]);

    /// Sets the sums of a row block to zero.
    fn zero(&mut self, block: usize);

    /// Loads the sums of a row block and 16 columns from float32 values.
    ///
    /// # Safety
    /// From `values` on there are the rows, 16 values each, `stride` values
    /// apart.
    unsafe fn load_sums(&mut self, block: usize, column: usize, values: *const f32, stride: usize);

    /// Stores what [`Self::load_sums`] loads.
    ///
    /// # Safety
    /// As there, and nobody else accesses the values.
    unsafe fn store_sums(&mut self, block: usize, column: usize, values: *mut f32, stride: usize);

    /// Loads a row block of 32 inputs.
    ///
    /// # Safety
    /// As [`Self::load_sums`], 32 values each.
    unsafe fn load_rows(&mut self, block: usize, values: *const u16, stride: usize);

    /// Loads 16 columns of 32 inputs, as 16 rows of 16 pairs.
    ///
    /// # Safety
    /// As [`Self::load_rows`], with 16 rows.
    unsafe fn load_columns(&mut self, column: usize, values: *const u16, stride: usize);

    /// Adds the product of a row block and 16 columns to its sums.
    fn multiply(&mut self, block: usize, column: usize);
}

/// Products of bfloat16 values on tiles of type `T`.
#[derive(Debug)]
pub(crate) struct Amx<T> {
    arch: Arch,
    tiles: fn() -> T,
}

impl<T> Clone for Amx<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Amx<T> {}

impl<T: Tiles> Amx<T> {
    /// Computes on the tiles that `tiles` returns, once for each product.
    #[cfg(test)]
    pub(crate) fn on(tiles: fn() -> T) -> Self {
        Self {
            arch: Arch::new(),
            tiles,
        }
    }
}

impl<T: Tiles + 'static> Arithmetic for Amx<T> {
    type Element = u16;
    const GROUP: usize = 2;
    const INPUT_ALIGNMENT: usize = TILE_INPUTS;

    fn width(self) -> usize {
        WIDTH
    }

    fn arch(self) -> Arch {
        self.arch
    }

    #[inline(always)]
    fn round(value: f32) -> u16 {
        to_bf16(value)
    }

    fn widen(element: u16) -> f32 {
        from_bf16(element)
    }

    unsafe fn add_product(self, product: Product<'_, u16>) {
        let mut tiles = (self.tiles)();
        let mut configured = [0; 2];
        product.for_each_tile(WIDTH, 2 * TILE, |tile| {
            let rows = [
                tile.row_count.min(TILE),
                tile.row_count.saturating_sub(TILE),
            ];
            if rows != configured {
                tiles.configure(rows);
                configured = rows;
            }
            // SAFETY: the caller vouches for the output.
            unsafe { compute(&mut tiles, &tile, if rows[1] == 0 { 1 } else { 2 }) };
        });
    }
}

/// # Safety
/// As for [`Arithmetic::add_product`].
#[inline(always)]
unsafe fn compute<T: Tiles>(tiles: &mut T, tile: &Tile<'_, u16>, blocks: usize) {
    assert!(tile.inputs.is_multiple_of(TILE_INPUTS), "inputs");
    assert!(tile.panel.len() >= tile.inputs * WIDTH, "panel");
    assert!(
        tile.rows.len() >= (tile.row_count - 1) * tile.stride + tile.inputs,
        "rows"
    );
    let is_full = tile.columns == WIDTH;
    for block in 0..blocks {
        if is_full {
            for column in 0..2 {
                // SAFETY: the rows of the block and a full panel are inside the
                // output.
                unsafe {
                    let out = tile.out.add(block * TILE * tile.out_stride + column * TILE);
                    tiles.load_sums(block, column, out, tile.out_stride);
                }
            }
        } else {
            tiles.zero(block);
        }
    }
    for first in (0..tile.inputs).step_by(TILE_INPUTS) {
        // SAFETY: panel and rows have these inputs, asserted above.
        unsafe {
            let panel = tile.panel.as_ptr().add(first * WIDTH);
            for column in 0..2 {
                tiles.load_columns(column, panel.add(column * 2 * TILE), 2 * WIDTH);
            }
            for block in 0..blocks {
                let rows = tile.rows.as_ptr().add(block * TILE * tile.stride + first);
                tiles.load_rows(block, rows, tile.stride);
            }
        }
        for block in 0..blocks {
            for column in 0..2 {
                tiles.multiply(block, column);
            }
        }
    }
    let mut sums = [[0.0f32; MAX_WIDTH]; 2 * TILE];
    for block in 0..blocks {
        for column in 0..2 {
            // SAFETY: as where the sums were loaded; or `sums` has the rows.
            unsafe {
                if is_full {
                    let out = tile.out.add(block * TILE * tile.out_stride + column * TILE);
                    tiles.store_sums(block, column, out, tile.out_stride);
                } else {
                    let out = sums[block * TILE..].as_mut_ptr().cast::<f32>();
                    tiles.store_sums(block, column, out.add(column * TILE), MAX_WIDTH);
                }
            }
        }
    }
    if !is_full {
        // SAFETY: the caller vouches for the output.
        unsafe { tile.add_partial(&sums) };
    }
}
