//! The tiles of products: how much of a matrix a block computes.

use super::NetworkAddresses;

/// The tile of one block: `32 * warps_m` weight rows by `rows` batch rows.
/// Must match the instances in `decode.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Batch rows.
    pub(crate) rows: usize,
    warps_m: usize,
    warps_n: usize,
    stages: usize,
}

pub(crate) const TILES: [Tile; 5] = [
    Tile {
        rows: 8,
        warps_m: 2,
        warps_n: 1,
        stages: 17,
    },
    Tile {
        rows: 16,
        warps_m: 2,
        warps_n: 1,
        stages: 17,
    },
    Tile {
        rows: 32,
        warps_m: 4,
        warps_n: 2,
        stages: 8,
    },
    Tile {
        rows: 64,
        warps_m: 4,
        warps_n: 2,
        stages: 6,
    },
    Tile {
        rows: 128,
        warps_m: 4,
        warps_n: 2,
        stages: 4,
    },
];

impl Tile {
    /// Weight rows.
    pub(crate) fn weight_rows(&self) -> usize {
        32 * self.warps_m
    }

    /// Threads of a block.
    pub(crate) fn threads(&self) -> usize {
        32 * self.warps_m * self.warps_n
    }

    /// Bytes of the weights and h of one block of columns.
    fn stage_bytes(&self) -> usize {
        self.warps_m * 2048 + self.rows * 64
    }

    /// Bytes of dynamic shared memory of a block: the ring of weights and h,
    /// with an entry and a token id per batch row behind it, or the logits on
    /// their way out, which reuse the ring.
    pub(crate) fn shared_bytes(&self) -> usize {
        let ring = self.stages * self.stage_bytes() + self.rows * 8;
        let logits = self.rows * (self.weight_rows() + 4) * 4;
        ring.max(logits)
    }

    /// Blocks for a product of `weight_rows` rows with `bucket` batch rows.
    fn blocks(&self, weight_rows: usize, bucket: usize) -> usize {
        weight_rows / self.weight_rows() * bucket.div_ceil(self.rows)
    }

    /// Index in [`TILES`] of the tile for a product on a device with
    /// `multiprocessors`: the largest that still occupies them, because a
    /// larger tile reads the weights less often. Tiles of 128 rows are slower
    /// than those of 64 (measured on an H100), as one block then has a
    /// multiprocessor to itself and its cells do not overlap with products.
    pub(crate) fn choose(weight_rows: usize, bucket: usize, multiprocessors: usize) -> usize {
        TILES[..TILES.len() - 1]
            .iter()
            .rposition(|tile| {
                let enough = if tile.rows == 64 { 6 } else { 2 };
                tile.rows <= bucket
                    && tile.blocks(weight_rows, bucket) * 5 >= multiprocessors * enough
            })
            .unwrap_or(0)
    }
}

/// Tiles of the kernels of a launch sequence, as indices in [`TILES`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileChoice {
    pub(crate) layer: usize,
    pub(crate) output: usize,
}

impl TileChoice {
    /// The tiles for `bucket` rows on a device with `multiprocessors`.
    pub(crate) fn new(network: &NetworkAddresses, bucket: usize, multiprocessors: usize) -> Self {
        Self {
            layer: Tile::choose(4 * network.hidden, bucket, multiprocessors),
            output: Tile::choose(network.padded_vocabulary(), bucket, multiprocessors),
        }
    }
}
