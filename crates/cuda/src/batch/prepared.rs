//! The launch sequences of a batch, prepared once for each number of rows.

use cudarc::driver::result;

use super::CudaBatch;
use crate::error::CudaError;
use crate::graph::{Graph, launch_kernel};
use crate::launch::{self, BatchAddresses, Launch, TILES, TileChoice, TopAddresses, table_words};

/// How a batch launches its kernels. The defaults are the fastest settings
/// measured; the results do not depend on them.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// Lets consecutive kernels overlap, if the device supports it.
    pub overlap: bool,
    /// If the logits of a step have up to this number of bytes, kernels write
    /// them directly to the host's memory; larger ones are copied after the
    /// step.
    pub direct_logits_bytes: usize,
    /// Prefills few sequences with one launch whose blocks wait for each other,
    /// if the device has room for all of them at once. Otherwise every
    /// character is a launch.
    pub whole_prefill: bool,
    /// Batch rows of a block in the LSTM layers and in the output layer: 8, 16,
    /// 32, 64 or 128. Other values choose by the size of the product.
    pub tile_rows: (usize, usize),
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            overlap: true,
            direct_logits_bytes: 2 << 20,
            whole_prefill: true,
            tile_rows: (0, 0),
        }
    }
}

impl CudaBatch {
    /// Submits the copy of the first `count` logits to the host.
    pub(super) fn copy_logits(&self, count: usize) -> Result<(), CudaError> {
        // SAFETY: both sides have at least this size and stay allocated; the
        // host reads its side after the stream has completed.
        unsafe {
            cudarc::driver::sys::cuMemcpyDtoHAsync_v2(
                self.host_logits.address() as *mut std::ffi::c_void,
                self.logits.address(),
                count * size_of::<f32>(),
                self.stream.cu_stream(),
            )
        }
        .result()
        .map_err(|error| CudaError::driver("copying logits", error))
    }

    pub(super) fn tiles(&self, bucket: usize) -> TileChoice {
        let device = self.network.device();
        let choice = TileChoice::new(
            self.network.addresses(),
            bucket,
            device.info().multiprocessors,
        );
        let forced = |rows: usize, chosen: usize| {
            TILES
                .iter()
                .position(|tile| tile.rows == rows)
                .unwrap_or(chosen)
        };
        TileChoice {
            layer: forced(self.options.tile_rows.0, choice.layer),
            output: forced(self.options.tile_rows.1, choice.output),
        }
    }

    /// Prepares the decode step for `bucket` rows.
    pub(super) fn capture_step(&self, bucket: usize) -> Result<Graph, CudaError> {
        let network = self.network.addresses();
        let count = bucket * network.vocabulary;
        let direct = count * size_of::<f32>() <= self.options.direct_logits_bytes;
        let addresses = BatchAddresses {
            states: self.states.address(),
            table: self.table.address(),
            logits: if direct {
                self.host_logits.address()
            } else {
                self.logits.address()
            },
            history: 0,
        };
        let launches = launch::step(network, &addresses, bucket, self.tiles(bucket));
        self.capture(
            &launches,
            table_words(bucket, 1),
            (!direct).then_some(count),
        )
    }

    /// Prepares the decode step for `bucket` rows with the highest logits only.
    pub(super) fn capture_top_step(&self, bucket: usize) -> Result<Graph, CudaError> {
        let network = self.network.addresses();
        let addresses = BatchAddresses {
            states: self.states.address(),
            table: self.table.address(),
            logits: self.logits.address(),
            history: 0,
        };
        let results = TopAddresses {
            log_sums: self.host_log_sums.address(),
            ids: self.host_top_ids.address(),
            top: self.host_top_logits.address(),
        };
        let mut launches = launch::step(network, &addresses, bucket, self.tiles(bucket));
        launches.push(launch::top_logits(network, &addresses, &results, bucket));
        self.capture(&launches, table_words(bucket, 1), None)
    }

    /// Prepares the prefill of `bucket` rows with `characters` characters.
    pub(super) fn capture_prefill(
        &self,
        bucket: usize,
        characters: usize,
    ) -> Result<Graph, CudaError> {
        let addresses = BatchAddresses {
            states: self.states.address(),
            table: self.table.address(),
            logits: 0,
            history: 0,
        };
        let network = self.network.addresses();
        let launches = launch::prefill(network, &addresses, bucket, characters, self.tiles(bucket));
        self.capture(&launches, table_words(bucket, characters), None)
    }

    /// Prepares a sequence: copies `table` words of the table to the device,
    /// launches the kernels, and copies `logits` numbers back.
    fn capture(
        &self,
        launches: &[Launch],
        table: usize,
        logits: Option<usize>,
    ) -> Result<Graph, CudaError> {
        let device = self.network.device();
        let failed = |error| CudaError::driver("preparing a launch sequence", error);
        let stream = self.stream.cu_stream();
        let operations = || {
            // SAFETY: recorded, not executed: the copy itself happens in
            // launches of the graph. Both sides have this size.
            let host = &unsafe { self.host_table.values() }[..table];
            // SAFETY: as above.
            unsafe { result::memcpy_htod_async(self.table.address(), host, stream) }
                .map_err(failed)?;
            let overlap = self.options.overlap && device.programmatic_launch();
            for (place, launch) in launches.iter().enumerate() {
                // The first kernel follows a copy, which must be complete.
                // SAFETY: the addresses are those of the batch and its
                // network, whose sizes are those of the grid.
                unsafe { launch_kernel(device, &self.stream, launch, overlap && place > 0) }?;
            }
            if let Some(count) = logits {
                self.copy_logits(count)?;
            }
            Ok(())
        };
        // SAFETY: graphs are dropped before the memory (the order of fields),
        // and no memory of a batch or its network is ever replaced.
        unsafe { Graph::capture(&self.stream, operations) }
    }
}
