//! What is launched on the device to score a chunk of characters: kernels,
//! grids and arguments. This is plain arithmetic; nothing here touches a
//! device.

use crate::launch::{COLUMN_BLOCK, Kernel, Launch};

/// Maximum number of characters of a chunk: `SCORE_CHUNK` in `score.cu`.
pub(crate) const SCORE_CHUNK: usize = 64;

/// Words of a chunk before the state: the number of characters, three unused
/// words, and the token ids.
pub(crate) const CHUNK_HEADER: usize = 4 + SCORE_CHUNK;

/// Rows of a matrix that a warp computes.
pub(crate) const SCORE_ROWS: usize = 32;

/// Threads and bytes of shared memory of a block of `score_wave`.
pub(crate) const WAVE_THREADS: usize = 32;
pub(crate) const WAVE_SHARED_BYTES: usize = 2048 * size_of::<f32>();

/// Characters of the chunk that a block of `score_logits` computes, its
/// threads, and its bytes of shared memory.
const LOGITS_CHARACTERS: usize = 16;
pub(crate) const LOGITS_THREADS: usize = 128;
pub(crate) const LOGITS_SHARED_BYTES: usize = LOGITS_CHARACTERS * 512 * size_of::<f32>();

/// The sizes of a network, and how they are padded for the kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreSizes {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) vocabulary: usize,
}

impl ScoreSizes {
    /// Columns of a matrix and numbers of a vector: the hidden size, padded.
    pub(crate) fn columns(&self) -> usize {
        self.hidden.next_multiple_of(COLUMN_BLOCK)
    }

    /// Groups of 8 units of a layer.
    pub(crate) fn groups(&self) -> usize {
        self.hidden.div_ceil(8)
    }

    /// Rows of the matrices of a layer: four for each unit, padded.
    pub(crate) fn rows(&self) -> usize {
        self.groups() * SCORE_ROWS
    }

    /// Matrices: the recurrent weights of every layer, and the input weights
    /// of all but the first.
    pub(crate) fn products(&self) -> usize {
        2 * self.layers - 1
    }

    /// Groups of 32 characters of the vocabulary.
    pub(crate) fn output_groups(&self) -> usize {
        self.vocabulary.div_ceil(SCORE_ROWS)
    }

    /// Numbers of a state on the device: h of all layers, then c of all layers.
    pub(crate) fn state_len(&self) -> usize {
        2 * self.layers * self.columns()
    }
}

/// Where a network's packed weights are; `score.cu` describes the contents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreNetworkAddresses {
    pub(crate) weights: u64,
    pub(crate) initial: u64,
    pub(crate) biases: u64,
    pub(crate) output_weights: u64,
    pub(crate) output_biases: u64,
}

/// Where the buffers of a score are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreAddresses {
    /// [`CHUNK_HEADER`] words, then the state before the chunk.
    pub(crate) chunk: u64,
    /// The state after the chunk, then the logits, `[characters][vocabulary]`.
    pub(crate) results: u64,
    /// `[layers][SCORE_CHUNK][columns]`.
    pub(crate) h: u64,
    /// `[layers][columns]`.
    pub(crate) c: u64,
    /// `[layers - 1][2][rows]`.
    pub(crate) sums: u64,
}

/// Arguments of the kernel `score_wave`; the layout of `ScoreWaveArguments` in
/// `score.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreWaveArguments {
    weights: u64,
    initial: u64,
    biases: u64,
    chunk: u64,
    begin: u64,
    end: u64,
    h: u64,
    c: u64,
    sums: u64,
    hidden: i32,
    columns: i32,
    layers: i32,
    first_product: i32,
    wave: i32,
}

/// Arguments of the kernel `score_logits`; the layout of
/// `ScoreLogitsArguments` in `score.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreLogitsArguments {
    weights: u64,
    biases: u64,
    chunk: u64,
    h: u64,
    logits: u64,
    columns: i32,
    vocabulary: i32,
}

/// The launches for a chunk of up to `characters` characters: a wave for each,
/// some more until the last one is through all layers, and the output layer.
pub(crate) fn score_chunk(
    sizes: &ScoreSizes,
    network: &ScoreNetworkAddresses,
    buffers: &ScoreAddresses,
    characters: usize,
) -> Vec<Launch> {
    let number = size_of::<f32>() as u64;
    let last = sizes.products() - 1;
    let mut launches: Vec<Launch> = (0..characters + last)
        .map(|wave| {
            let first = (wave + 1).saturating_sub(characters);
            let products = wave.min(last) + 1 - first;
            Launch {
                kernel: Kernel::ScoreWave(ScoreWaveArguments {
                    weights: network.weights,
                    initial: network.initial,
                    biases: network.biases,
                    chunk: buffers.chunk,
                    begin: buffers.chunk + CHUNK_HEADER as u64 * number,
                    end: buffers.results,
                    h: buffers.h,
                    c: buffers.c,
                    sums: buffers.sums,
                    hidden: sizes.hidden as i32,
                    columns: sizes.columns() as i32,
                    layers: sizes.layers as i32,
                    first_product: first as i32,
                    wave: wave as i32,
                }),
                grid: [sizes.groups() as u32, products as u32, 1],
            }
        })
        .collect();
    let last_layer = (sizes.layers - 1) * SCORE_CHUNK * sizes.columns();
    launches.push(Launch {
        kernel: Kernel::ScoreLogits(ScoreLogitsArguments {
            weights: network.output_weights,
            biases: network.output_biases,
            chunk: buffers.chunk,
            h: buffers.h + last_layer as u64 * number,
            logits: buffers.results + sizes.state_len() as u64 * number,
            columns: sizes.columns() as i32,
            vocabulary: sizes.vocabulary as i32,
        }),
        grid: [
            sizes.output_groups() as u32,
            characters.div_ceil(LOGITS_CHARACTERS) as u32,
            1,
        ],
    });
    launches
}
