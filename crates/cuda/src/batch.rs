//! Sequences that are decoded together on a device: the memory of a batch, and
//! its decode steps.

mod prefill;
mod prepared;
mod slots;
mod states;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use charlstm_model::decode_step::HighestOfRows;
use cudarc::driver::{CudaStream, DriverError};

use self::prefill::WholePrefill;
pub use self::prepared::BatchOptions;
pub use self::slots::Slot;
use self::slots::SlotTable;
use crate::error::CudaError;
use crate::graph::Graph;
use crate::launch::{
    self, MAX_CHUNK, MAX_WHOLE_CHUNK, TABLE_HEADER, TOP, table_entry, table_words,
};
use crate::memory::{DeviceMemory, PinnedMemory};
use crate::network::CudaNetwork;
use crate::state_layout::StateLayout;

/// Maximum number of slots of a batch: as many rows as one launch can have, with a margin
/// below the largest grid.
pub const MAX_CAPACITY: usize = 16_384;

/// Maximum number of states on their way to or from the device, and of bytes of
/// page-locked memory for them. More hardly help: the device copies 256 states
/// of 5 KB in a fraction of a millisecond.
const STAGED_STATES: usize = 256;
const STAGED_BYTES: usize = 16 << 20;

/// Sequences that are decoded together: their states, on a device, and the
/// prepared launch sequences.
///
/// Memory on the device: for each slot two states of the padded size, and a
/// logit per slot and character of the vocabulary, which page-locked host
/// memory also holds once.
pub struct CudaBatch {
    options: BatchOptions,
    steps: HashMap<usize, Graph>,
    top_steps: HashMap<usize, Graph>,
    prefills: HashMap<(usize, usize), Graph>,
    stream: Arc<CudaStream>,
    states: DeviceMemory,
    table: DeviceMemory,
    logits: DeviceMemory,
    /// h of the last layer after each character of one sequence.
    history: DeviceMemory,
    /// A table that names the rows of `history` in order.
    history_table: DeviceMemory,
    host_table: PinnedMemory<u32>,
    host_logits: PinnedMemory<f32>,
    host_log_sums: PinnedMemory<f64>,
    host_top_ids: PinnedMemory<u32>,
    host_top_logits: PinnedMemory<f32>,
    staging: PinnedMemory<u8>,
    whole_prefill: Option<WholePrefill>,
    /// Number of states that `staging` has room for.
    staging_states: usize,
    /// States in `staging` that may still be on their way to the device.
    staged: usize,
    slots: SlotTable,
    failure: Option<CudaError>,
    layout: StateLayout,
    network: Arc<CudaNetwork>,
}

impl CudaBatch {
    /// Creates an empty batch of `capacity` slots, with all memory that it will
    /// ever use, and prepares the decode steps for every number of rows.
    ///
    /// # Errors
    /// Fails if the capacity is 0 or over [`MAX_CAPACITY`], the device has too
    /// little memory, or the device is lost.
    pub fn new(network: Arc<CudaNetwork>, capacity: usize) -> Result<Self, CudaError> {
        Self::with_options(network, capacity, BatchOptions::default())
    }

    /// As [`Self::new`], with other launch settings.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_options(
        network: Arc<CudaNetwork>,
        capacity: usize,
        options: BatchOptions,
    ) -> Result<Self, CudaError> {
        if capacity == 0 || capacity > MAX_CAPACITY {
            return Err(CudaError::Capacity {
                given: capacity,
                max: MAX_CAPACITY,
            });
        }
        let device = network.device();
        device.bind()?;
        let stream = device.stream()?;
        let context = stream.context().clone();
        let bucket = launch::bucket(capacity);
        let vocabulary = network.shape().vocabulary_size();
        let layout = StateLayout::new(network.shape());
        let state_bytes = layout.bytes();
        let staging_states = (STAGED_BYTES / state_bytes).clamp(1, STAGED_STATES);
        let addresses = network.addresses();
        let mut whole_prefill = None;
        if options.whole_prefill
            && let Some((division, rows)) =
                device.whole_prefill(addresses.hidden, addresses.layers)?
        {
            let rows = rows.min(bucket);
            let bytes = launch::exchange_bytes(addresses.hidden, addresses.layers, rows);
            whole_prefill = Some(WholePrefill {
                division,
                rows,
                exchange: DeviceMemory::zeroed(&stream, "the prefill of a batch", bytes)?,
                base: 0,
            });
        }
        let words = whole_prefill.as_ref().map_or(0, |whole| {
            table_words(launch::bucket(whole.rows), MAX_WHOLE_CHUNK)
        });
        let words = words.max(table_words(bucket, MAX_CHUNK));
        let logit_count = bucket.max(MAX_WHOLE_CHUNK + 1) * vocabulary;
        let history_rows: Vec<u32> = [0; TABLE_HEADER]
            .into_iter()
            .chain(0..MAX_WHOLE_CHUNK as u32)
            .collect();
        const HISTORY: &str = "the prefill of a batch";
        const STATES: &str = "the states of a batch";
        const LOGITS: &str = "the logits of a batch";
        let mut batch = Self {
            options,
            steps: HashMap::new(),
            top_steps: HashMap::new(),
            prefills: HashMap::new(),
            states: DeviceMemory::zeroed(&stream, STATES, 2 * capacity * state_bytes)?,
            table: DeviceMemory::zeroed(&stream, "the tables of a batch", words * 4)?,
            logits: DeviceMemory::zeroed(&stream, LOGITS, logit_count * 4)?,
            history: DeviceMemory::zeroed(&stream, HISTORY, MAX_WHOLE_CHUNK * addresses.hidden)?,
            history_table: DeviceMemory::copied(&stream, HISTORY, &history_rows)?,
            host_table: PinnedMemory::zeroed(&context, "the tables of a batch", words)?,
            host_logits: PinnedMemory::zeroed(&context, LOGITS, logit_count)?,
            host_log_sums: PinnedMemory::zeroed(&context, LOGITS, bucket)?,
            host_top_ids: PinnedMemory::zeroed(&context, LOGITS, bucket * TOP)?,
            host_top_logits: PinnedMemory::zeroed(&context, LOGITS, bucket * TOP)?,
            staging: PinnedMemory::zeroed(&context, STATES, staging_states * state_bytes)?,
            whole_prefill,
            staging_states,
            staged: 0,
            slots: SlotTable::new(capacity),
            failure: None,
            stream,
            layout,
            network,
        };
        let mut rows = launch::bucket(1);
        loop {
            let graph = batch.capture_step(rows)?;
            batch.steps.insert(rows, graph);
            if rows >= bucket {
                break;
            }
            rows *= 2;
        }
        batch.complete("preparing a batch")?;
        Ok(batch)
    }

    /// The network that the batch decodes with.
    pub fn network(&self) -> &Arc<CudaNetwork> {
        &self.network
    }

    /// Number of slots.
    pub fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// Number of slots in use.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of device memory that the batch takes, without the network.
    pub fn device_bytes(&self) -> usize {
        let exchange = self.whole_prefill.as_ref();
        self.states.bytes()
            + self.table.bytes()
            + self.logits.bytes()
            + self.history.bytes()
            + self.history_table.bytes()
            + exchange.map_or(0, |whole| whole.exchange.bytes())
    }

    /// Bytes of page-locked host memory that the batch takes.
    pub fn host_bytes(&self) -> usize {
        self.host_table.bytes()
            + self.host_logits.bytes()
            + self.host_log_sums.bytes()
            + self.host_top_ids.bytes()
            + self.host_top_logits.bytes()
            + self.staging.bytes()
    }

    /// Feeds each of the sequences one character and returns the logits of the
    /// next, `[rows][vocabulary]`, in the order of `rows`. Sequences that are
    /// not named stay as they are. Blocks until the device has finished.
    ///
    /// # Errors
    /// Fails if a slot is not in use or named twice, or a token id is outside
    /// the vocabulary; then nothing has changed. Fails if the device fails;
    /// then the batch cannot be used any more.
    pub fn step(&mut self, rows: &[(Slot, u32)]) -> Result<&[f32], CudaError> {
        self.run_step(rows, false)?;
        // SAFETY: the stream has completed.
        let logits = unsafe { self.host_logits.values() };
        Ok(&logits[..rows.len() * self.network.shape().vocabulary_size()])
    }

    /// As [`Self::step`], but returns only the 64 highest logits of each row
    /// (all, if the vocabulary is smaller) and the log-sum-exp of all, which
    /// the device computes. Faster for large vocabularies, whose logits take
    /// long to copy and to sample from.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_top(&mut self, rows: &[(Slot, u32)]) -> Result<HighestOfRows<'_>, CudaError> {
        self.run_step(rows, true)?;
        // SAFETY: the stream has completed.
        let results = unsafe {
            (
                self.host_log_sums.values(),
                self.host_top_ids.values(),
                self.host_top_logits.values(),
            )
        };
        Ok(HighestOfRows {
            log_sums: &results.0[..rows.len()],
            ids: &results.1[..rows.len() * TOP],
            logits: &results.2[..rows.len() * TOP],
            count: self.network.shape().vocabulary_size().min(TOP),
            stride: TOP,
        })
    }

    /// Runs a step and waits for it. `top`: with the highest logits only.
    fn run_step(&mut self, rows: &[(Slot, u32)], top: bool) -> Result<(), CudaError> {
        self.check_usable()?;
        self.slots.begin_call();
        for &(slot, token) in rows {
            self.check_row(slot, &[token])?;
        }
        if rows.is_empty() {
            return Ok(());
        }
        let bucket = launch::bucket(rows.len());
        if top && !self.top_steps.contains_key(&bucket) {
            let graph = self.capture_top_step(bucket)?;
            self.top_steps.insert(bucket, graph);
        }
        // SAFETY: every call that uses the table waits for the device before
        // it returns, or leaves the batch unusable.
        let table = unsafe { self.host_table.values_mut() };
        table[0] = rows.len() as u32;
        let (entries, tokens) = table[TABLE_HEADER..].split_at_mut(bucket);
        for (place, &(slot, token)) in rows.iter().enumerate() {
            let row = self.slots.row(slot)?;
            entries[place] = table_entry(row, 1);
            tokens[place] = token;
        }
        let graphs = if top {
            &mut self.top_steps
        } else {
            &mut self.steps
        };
        let Some(graph) = graphs.get_mut(&bucket) else {
            unreachable!("a step is prepared for every bucket up to the capacity's");
        };
        // SAFETY: the stream is waited for before the host's memory is used
        // again.
        let launched = unsafe { graph.launch() };
        self.completed("a decode step", launched)?;
        self.complete("a decode step")?;
        for &(slot, _) in rows {
            self.slots.advance(slot, 1);
        }
        Ok(())
    }

    /// Measures the device alone: the time per step of `repeats` steps of
    /// `rows` rows, one after the other, without the host in between. The
    /// sequences stay as they are. For benchmarks.
    ///
    /// # Errors
    /// Fails if fewer slots are in use, or the device fails.
    pub fn time_steps(&mut self, rows: usize, repeats: u32) -> Result<Duration, CudaError> {
        const TIMING: &str = "timing decode steps";
        let slots = self.slots.first(rows).into_iter();
        let inputs: Vec<(Slot, u32)> = slots.map(|slot| (slot, 0)).collect();
        if inputs.len() < rows || rows == 0 {
            return Err(CudaError::StaleSlot {
                index: inputs.len(),
            });
        }
        // Fills the table. The steps below all read what this one reads.
        self.step(&inputs)?;
        for &(slot, _) in &inputs {
            self.slots.advance(slot, 1);
        }
        let Some(graph) = self.steps.get_mut(&launch::bucket(rows)) else {
            unreachable!("a step is prepared for every bucket up to the capacity's");
        };
        let start = Instant::now();
        let mut launched = Ok(());
        for _ in 0..repeats {
            // SAFETY: as in `run_step`.
            launched = launched.and(unsafe { graph.launch() });
        }
        self.completed(TIMING, launched)?;
        self.complete(TIMING)?;
        Ok(start.elapsed() / repeats.max(1))
    }

    /// Waits until the device has done everything that was submitted.
    fn complete(&mut self, operation: &'static str) -> Result<(), CudaError> {
        let outcome = self.stream.synchronize();
        self.completed(operation, outcome)?;
        self.staged = 0;
        Ok(())
    }

    /// Marks the batch as failed if an operation on it has failed.
    fn completed(
        &mut self,
        operation: &'static str,
        outcome: Result<(), DriverError>,
    ) -> Result<(), CudaError> {
        outcome.map_err(|error| {
            let error = CudaError::driver(operation, error);
            self.failure = Some(error.clone());
            error
        })
    }

    fn check_usable(&self) -> Result<(), CudaError> {
        match &self.failure {
            None => Ok(()),
            Some(cause @ CudaError::DeviceLost { .. }) => Err(cause.clone()),
            Some(cause) => Err(CudaError::BatchFailed(Box::new(cause.clone()))),
        }
    }

    /// Checks a row of a call.
    fn check_row(&mut self, slot: Slot, tokens: &[u32]) -> Result<(), CudaError> {
        self.slots.name(slot)?;
        let vocabulary = self.network.shape().vocabulary_size();
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(CudaError::InvalidToken { token, vocabulary }),
            None => Ok(()),
        }
    }
}

impl Drop for CudaBatch {
    fn drop(&mut self) {
        // Nothing may be in progress when the memory is freed. An error is one
        // that the caller has already seen, or will see on the device's next
        // use.
        let _ = self.stream.synchronize();
    }
}
