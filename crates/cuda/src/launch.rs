//! What is launched on the device for a decode step or a prefill: kernels,
//! grids and arguments. This is plain arithmetic; nothing here touches a
//! device.

use std::ffi::c_void;

use crate::score::launch::{
    LOGITS_SHARED_BYTES, LOGITS_THREADS, ScoreLogitsArguments, ScoreWaveArguments,
    WAVE_SHARED_BYTES, WAVE_THREADS,
};

/// Columns of a weight matrix that a kernel processes at a time. Hidden sizes
/// are padded to a multiple of it.
pub(crate) const COLUMN_BLOCK: usize = 64;

/// The vocabulary is padded to a multiple of this in the output layer's
/// weights: the most weight rows of a tile.
pub(crate) const OUTPUT_BLOCK: usize = 128;

/// Words of a table before its first entry.
pub(crate) const TABLE_HEADER: usize = 4;

/// Most characters per row in one prefill with a launch per character: longer
/// sequences keep decode steps waiting for longer (64 characters take a quarter
/// of a millisecond).
pub(crate) const MAX_CHUNK: usize = 64;

/// Most characters per row in one [`whole_prefill`], as many as a table entry
/// can count.
pub(crate) const MAX_WHOLE_CHUNK: usize = 255;

/// Largest state row index that fits a table entry, which has 24 bits for it.
pub(crate) const MAX_STATE_ROWS: usize = 1 << 24;

/// A row of a table: the state row that is read, and how many characters are
/// processed.
pub(crate) fn table_entry(state_row: u32, characters: usize) -> u32 {
    debug_assert!((state_row as usize) < MAX_STATE_ROWS && characters <= MAX_WHOLE_CHUNK);
    (characters as u32) << 24 | state_row
}

/// Words of a table for `bucket` rows of `characters` characters.
pub(crate) fn table_words(bucket: usize, characters: usize) -> usize {
    TABLE_HEADER + bucket * (1 + characters)
}

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

/// Arguments of the kernels `layer_*`; the layout of `LayerArguments` in
/// `decode.cu`. Pointers are addresses on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerArguments {
    pub(crate) hidden_weights: u64,
    pub(crate) input_weights: u64,
    pub(crate) hidden_scales: u64,
    pub(crate) input_scales: u64,
    pub(crate) biases: u64,
    pub(crate) initial: u64,
    pub(crate) states: u64,
    pub(crate) table: u64,
    pub(crate) hidden: i32,
    pub(crate) layers: i32,
    pub(crate) bucket: i32,
    pub(crate) first_layer: i32,
    pub(crate) wave: i32,
    pub(crate) early: i32,
    pub(crate) history_rows: i32,
    pub(crate) history: u64,
}

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

/// Arguments of the kernels `prefill_*`; the layout of `PrefillArguments` in
/// `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefillArguments {
    pub(crate) layer: LayerArguments,
    pub(crate) exchange: u64,
    pub(crate) characters: i32,
    pub(crate) base: u32,
}

/// Arguments of the kernels `output_*`; the layout of `OutputArguments` in
/// `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputArguments {
    pub(crate) weights: u64,
    pub(crate) scales: u64,
    pub(crate) biases: u64,
    pub(crate) rows: u64,
    pub(crate) row_bytes: u64,
    pub(crate) table: u64,
    pub(crate) logits: u64,
    pub(crate) hidden: i32,
    pub(crate) vocabulary: i32,
}

/// Where a network's packed weights are; see `LayerArguments` and
/// `OutputArguments` in `decode.cu` for the contents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetworkAddresses {
    pub(crate) hidden_weights: u64,
    pub(crate) input_weights: u64,
    pub(crate) hidden_scales: u64,
    pub(crate) input_scales: u64,
    pub(crate) biases: u64,
    pub(crate) initial: u64,
    pub(crate) output_weights: u64,
    pub(crate) output_scales: u64,
    pub(crate) output_biases: u64,
    /// Hidden size, padded.
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) vocabulary: usize,
}

impl NetworkAddresses {
    /// The vocabulary, padded as the output layer's weights are.
    pub(crate) fn padded_vocabulary(&self) -> usize {
        self.vocabulary.next_multiple_of(OUTPUT_BLOCK)
    }
}

/// Where a batch's buffers are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchAddresses {
    pub(crate) states: u64,
    pub(crate) table: u64,
    /// Not used by a prefill.
    pub(crate) logits: u64,
    /// 0, or where a prefill stores h of the last layer after each character:
    /// `[rows][MAX_WHOLE_CHUNK][hidden]` bytes.
    pub(crate) history: u64,
}

/// Arguments of the kernel `copy_states`; the layout of `CopyArguments` in
/// `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyArguments {
    pub(crate) states: u64,
    pub(crate) rows: u64,
    pub(crate) out: u64,
    pub(crate) bytes: i32,
}

/// Number of logits that `top_logits` returns per row.
pub(crate) const TOP: usize = 64;

/// Threads of a block of `top_logits`.
const TOP_THREADS: usize = 256;

/// Bytes of shared memory of a block of `top_logits`: `TopShared` in
/// `decode.cu`.
pub(crate) const TOP_SHARED_BYTES: usize = 18_488;

/// Arguments of the kernel `top_logits`; the layout of `TopArguments` in
/// `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopArguments {
    pub(crate) logits: u64,
    pub(crate) table: u64,
    pub(crate) log_sums: u64,
    pub(crate) ids: u64,
    pub(crate) top: u64,
    pub(crate) vocabulary: i32,
}

/// A kernel and its arguments. Tiles are indices in [`TILES`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kernel {
    Layer {
        tile: usize,
        arguments: LayerArguments,
    },
    Output {
        tile: usize,
        arguments: OutputArguments,
    },
    /// All blocks must run at the same time.
    Prefill {
        division: PrefillDivision,
        arguments: PrefillArguments,
    },
    Top(TopArguments),
    CopyStates(CopyArguments),
    ScoreWave(ScoreWaveArguments),
    ScoreLogits(ScoreLogitsArguments),
}

/// One kernel launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) grid: [u32; 3],
}

impl Launch {
    /// Threads of a block.
    pub(crate) fn threads(&self) -> usize {
        match self.kernel {
            Kernel::Layer { tile, .. } | Kernel::Output { tile, .. } => TILES[tile].threads(),
            Kernel::Prefill { division, .. } => division.threads(),
            Kernel::Top(_) => TOP_THREADS,
            Kernel::CopyStates(_) => 256,
            Kernel::ScoreWave(_) => WAVE_THREADS,
            Kernel::ScoreLogits(_) => LOGITS_THREADS,
        }
    }

    /// Bytes of dynamic shared memory of a block.
    pub(crate) fn shared_bytes(&self) -> usize {
        match self.kernel {
            Kernel::Layer { tile, .. } | Kernel::Output { tile, .. } => TILES[tile].shared_bytes(),
            Kernel::Prefill { division, .. } => division.shared_bytes(),
            Kernel::Top(_) => TOP_SHARED_BYTES,
            Kernel::CopyStates(_) => 0,
            Kernel::ScoreWave(_) => WAVE_SHARED_BYTES,
            Kernel::ScoreLogits(_) => LOGITS_SHARED_BYTES,
        }
    }

    /// Address of the arguments, for the driver.
    pub(crate) fn arguments(&self) -> *const c_void {
        match &self.kernel {
            Kernel::Layer { arguments, .. } => std::ptr::from_ref(arguments).cast(),
            Kernel::Output { arguments, .. } => std::ptr::from_ref(arguments).cast(),
            Kernel::Prefill { arguments, .. } => std::ptr::from_ref(arguments).cast(),
            Kernel::Top(arguments) => std::ptr::from_ref(arguments).cast(),
            Kernel::CopyStates(arguments) => std::ptr::from_ref(arguments).cast(),
            Kernel::ScoreWave(arguments) => std::ptr::from_ref(arguments).cast(),
            Kernel::ScoreLogits(arguments) => std::ptr::from_ref(arguments).cast(),
        }
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

/// A launch of layers `layers` of a network, for one wave.
fn layer_launch(
    network: &NetworkAddresses,
    batch: &BatchAddresses,
    bucket: usize,
    tile: usize,
    layers: std::ops::Range<usize>,
    wave: usize,
    early: bool,
) -> Launch {
    let shape = &TILES[tile];
    Launch {
        grid: [
            (4 * network.hidden / shape.weight_rows()) as u32,
            bucket.div_ceil(shape.rows) as u32,
            layers.len() as u32,
        ],
        kernel: Kernel::Layer {
            tile,
            arguments: LayerArguments {
                first_layer: layers.start as i32,
                wave: wave as i32,
                early: early.into(),
                ..layer_arguments(network, batch, bucket)
            },
        },
    }
}

fn layer_arguments(
    network: &NetworkAddresses,
    batch: &BatchAddresses,
    bucket: usize,
) -> LayerArguments {
    LayerArguments {
        hidden_weights: network.hidden_weights,
        input_weights: network.input_weights,
        hidden_scales: network.hidden_scales,
        input_scales: network.input_scales,
        biases: network.biases,
        initial: network.initial,
        states: batch.states,
        table: batch.table,
        hidden: network.hidden as i32,
        layers: network.layers as i32,
        bucket: bucket as i32,
        first_layer: 0,
        wave: 0,
        early: 0,
        history_rows: MAX_WHOLE_CHUNK as i32,
        history: batch.history,
    }
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

/// The launches of one decode step: each layer, then the output layer.
pub(crate) fn step(
    network: &NetworkAddresses,
    batch: &BatchAddresses,
    bucket: usize,
    tiles: TileChoice,
) -> Vec<Launch> {
    let mut launches: Vec<_> = (0..network.layers)
        .map(|layer| {
            let layers = layer..layer + 1;
            layer_launch(network, batch, bucket, tiles.layer, layers, layer, true)
        })
        .collect();
    let last_layer = ((network.layers - 1) * network.hidden) as u64;
    let rows = OutputRows {
        address: batch.states + last_layer,
        row_bytes: (network.layers * network.hidden * 5) as u64,
        table: batch.table,
        logits: batch.logits,
    };
    launches.push(output(network, &rows, bucket, tiles.output));
    launches
}

/// The rows of h of which [`output`] computes the logits, and where it writes
/// them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputRows {
    pub(crate) address: u64,
    pub(crate) row_bytes: u64,
    pub(crate) table: u64,
    pub(crate) logits: u64,
}

/// The launch of the output layer for `bucket` rows.
pub(crate) fn output(
    network: &NetworkAddresses,
    rows: &OutputRows,
    bucket: usize,
    tile: usize,
) -> Launch {
    let shape = &TILES[tile];
    Launch {
        grid: [
            (network.padded_vocabulary() / shape.weight_rows()) as u32,
            bucket.div_ceil(shape.rows) as u32,
            1,
        ],
        kernel: Kernel::Output {
            tile,
            arguments: OutputArguments {
                weights: network.output_weights,
                scales: network.output_scales,
                biases: network.output_biases,
                rows: rows.address,
                row_bytes: rows.row_bytes,
                table: rows.table,
                logits: rows.logits,
                hidden: network.hidden as i32,
                vocabulary: network.vocabulary as i32,
            },
        },
    }
}

/// The launches that process up to `characters` known characters per row. In
/// wave w, layer l processes character w - l, so all layers run at once and a
/// character costs one launch.
pub(crate) fn prefill(
    network: &NetworkAddresses,
    batch: &BatchAddresses,
    bucket: usize,
    characters: usize,
    tiles: TileChoice,
) -> Vec<Launch> {
    let last = network.layers - 1;
    (0..characters + last)
        .map(|wave| {
            let first = (wave + 1).saturating_sub(characters);
            let layers = first..wave.min(last) + 1;
            layer_launch(network, batch, bucket, tiles.layer, layers, wave, false)
        })
        .collect()
}

/// Addresses of the results of [`top_logits`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopAddresses {
    pub(crate) log_sums: u64,
    pub(crate) ids: u64,
    pub(crate) top: u64,
}

/// Finds the highest logits of each row, after [`step`].
pub(crate) fn top_logits(
    network: &NetworkAddresses,
    batch: &BatchAddresses,
    results: &TopAddresses,
    bucket: usize,
) -> Launch {
    Launch {
        kernel: Kernel::Top(TopArguments {
            logits: batch.logits,
            table: batch.table,
            log_sums: results.log_sums,
            ids: results.ids,
            top: results.top,
            vocabulary: network.vocabulary as i32,
        }),
        grid: [bucket as u32, 1, 1],
    }
}

/// Copies state rows to consecutive memory: `rows` and `out` are addresses of
/// the list of rows and of the memory.
pub(crate) fn copy_states(states: u64, rows: u64, out: u64, count: usize, bytes: usize) -> Launch {
    Launch {
        kernel: Kernel::CopyStates(CopyArguments {
            states,
            rows,
            out,
            bytes: bytes as i32,
        }),
        grid: [count as u32, 1, 1],
    }
}

/// Number of characters of the prefill launch for rows of which the longest has
/// `longest` left: a power of two from 4 to [`MAX_CHUNK`], so that few
/// different launch sequences are needed, and at most a third of the waves are
/// idle.
pub(crate) fn chunk_characters(longest: usize) -> usize {
    let above = longest.clamp(4, MAX_CHUNK).next_power_of_two();
    if longest.min(MAX_CHUNK) * 3 > above * 2 || above == 4 {
        above
    } else {
        above / 2
    }
}

/// Number of rows that the launch sequence for `rows` rows has room for: a
/// power of two, so that few different sequences are needed.
pub(crate) fn bucket(rows: usize) -> usize {
    rows.max(TILES[0].rows).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_memory_of_every_tile_fits_every_supported_device() {
        // 99 KiB is what a block can have on the smallest of them (8.6, 8.9, 12.0).
        for tile in TILES {
            assert!(tile.shared_bytes() <= 99 * 1024, "{tile:?}");
        }
    }

    #[test]
    fn a_chunk_is_a_power_of_two_with_few_idle_waves() {
        for (longest, chunk) in [
            (1, 4),
            (4, 4),
            (5, 4),
            (6, 8),
            (10, 8),
            (11, 16),
            (43, 64),
            (42, 32),
            (64, 64),
            (5000, 64),
        ] {
            assert_eq!(chunk_characters(longest), chunk, "{longest}");
        }
    }

    #[test]
    fn tiles_grow_with_the_rows_as_long_as_every_multiprocessor_has_work() {
        // 2 x 512 on 132 multiprocessors.
        let chosen = |bucket| TILES[Tile::choose(2048, bucket, 132)].rows;
        assert_eq!(chosen(8), 8);
        assert_eq!(chosen(64), 16);
        assert_eq!(chosen(128), 32);
        assert_eq!(chosen(256), 32);
        assert_eq!(chosen(1024), 64);
    }
}
