//! What is launched on the device for a decode step or a prefill: kernels,
//! grids and arguments. This is plain arithmetic; nothing here touches a
//! device.

mod arguments;
mod tiles;
mod whole_prefill;

use std::ffi::c_void;

pub(crate) use self::arguments::TopArguments;
use self::arguments::{CopyArguments, LayerArguments, OutputArguments, PrefillArguments};
pub(crate) use self::tiles::{TILES, TileChoice};
pub(crate) use self::whole_prefill::{
    Exchange, MAX_WHOLE_PREFILL_ROWS, PREFILL_TILE_ROWS, PrefillDivision, exchange_bytes,
    whole_prefill,
};

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

/// Number of logits that `top_logits` returns per row.
pub(crate) const TOP: usize = 64;

/// Threads of a block of `top_logits`.
const TOP_THREADS: usize = 256;

/// Bytes of shared memory of a block of `top_logits`: `TopShared` in
/// `decode.cu`.
pub(crate) const TOP_SHARED_BYTES: usize = 18_488;

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
    use super::tiles::Tile;
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
