//! The prefill of a few rows as one launch, whose blocks exchange h with each other.

use super::arguments::PrefillArguments;
use super::{BatchAddresses, Kernel, Launch, NetworkAddresses, bucket, layer_arguments};

/// Rows of a tile of [`whole_prefill`].
pub(crate) const PREFILL_TILE_ROWS: usize = 8;

/// Most rows of a [`whole_prefill`], which bounds the memory of its exchange.
/// More rows than that keep a device busy with a launch per character, too.
pub(crate) const MAX_WHOLE_PREFILL_ROWS: usize = 128;

/// Most threads of a block of [`whole_prefill`], as `decode.cu` says.
const MAX_PREFILL_THREADS: usize = 256;

/// How the units of a network are divided among the blocks of
/// [`whole_prefill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PrefillDivision {
    /// 1 or 2 groups of 8 units of each layer per block.
    pub(crate) groups: usize,
    hidden: usize,
    layers: usize,
}

impl PrefillDivision {
    /// All divisions of a network that the kernels support, larger blocks
    /// first.
    pub(crate) fn all(hidden: usize, layers: usize) -> impl Iterator<Item = Self> {
        let divisions = [2, 1].map(|groups| Self {
            groups,
            hidden,
            layers,
        });
        divisions
            .into_iter()
            .filter(|division| division.threads() <= MAX_PREFILL_THREADS)
    }

    /// Threads of a block: a warp per layer and group.
    pub(crate) fn threads(&self) -> usize {
        32 * self.groups * self.layers
    }

    /// Blocks for each tile of rows.
    pub(crate) fn blocks(&self) -> usize {
        self.hidden / (8 * self.groups)
    }

    /// Bytes of shared memory of a block: its part of all matrices, h of all
    /// layers twice, and an entry per row.
    pub(crate) fn shared_bytes(&self) -> usize {
        let weights = (2 * self.layers - 1) * self.groups * 32 * self.hidden;
        let h = 2 * self.layers * PREFILL_TILE_ROWS * self.hidden;
        weights + h + PREFILL_TILE_ROWS * 4
    }
}

/// Bytes of the memory through which the blocks of [`whole_prefill`] exchange h:
/// two buffers of an 8-byte word per 4 units.
pub(crate) fn exchange_bytes(hidden: usize, layers: usize, rows: usize) -> usize {
    2 * layers * rows.next_multiple_of(PREFILL_TILE_ROWS) * hidden / 4 * 8
}

/// What a [`whole_prefill`] needs besides the table and the states.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    /// Address of [`exchange_bytes`] bytes.
    pub(crate) address: u64,
    /// All sequence numbers in that memory are at most this.
    pub(crate) base: u32,
}

impl Exchange {
    /// Number of sequence numbers that a launch uses.
    pub(crate) fn waves(layers: usize, characters: usize) -> u32 {
        (characters + layers) as u32
    }
}

/// The one launch that processes up to `characters` known characters of `rows`
/// rows. All its blocks must fit on the device at once.
pub(crate) fn whole_prefill(
    network: &NetworkAddresses,
    batch: &BatchAddresses,
    exchange: &Exchange,
    division: PrefillDivision,
    rows: usize,
    characters: usize,
) -> Launch {
    Launch {
        grid: [
            division.blocks() as u32,
            rows.div_ceil(PREFILL_TILE_ROWS) as u32,
            1,
        ],
        kernel: Kernel::Prefill {
            division,
            arguments: PrefillArguments {
                layer: layer_arguments(network, batch, bucket(rows)),
                exchange: exchange.address,
                characters: characters as i32,
                base: exchange.base,
            },
        },
    }
}
