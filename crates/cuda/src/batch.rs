//! Sequences that are decoded together on a device.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use charlstm_int8::State;
use cudarc::driver::{CudaStream, DriverError, result};

use crate::error::CudaError;
use crate::graph::{Graph, launch_kernel};
use crate::launch::{
    self, BatchAddresses, Exchange, Launch, MAX_CHUNK, MAX_WHOLE_CHUNK, OutputRows,
    PrefillDivision, TABLE_HEADER, TILES, TOP, TileChoice, TopAddresses, table_entry, table_words,
};
use crate::memory::{DeviceMemory, PinnedMemory};
use crate::network::CudaNetwork;
use crate::state_layout::StateLayout;

/// Most slots of a batch: as many rows as one launch can have, with a margin
/// below the largest grid.
pub const MAX_CAPACITY: usize = 16_384;

/// Most states on their way to or from the device, and most bytes of
/// page-locked memory for them. More hardly help: the device copies 256 states
/// of 5 KB in a fraction of a millisecond.
const STAGED_STATES: usize = 256;
const STAGED_BYTES: usize = 16 << 20;

/// A sequence in a [`CudaBatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    generation: u32,
}

/// The highest logits of several rows; see [`CudaBatch::step_top`].
#[derive(Clone, Copy, Debug)]
pub struct TopLogits<'a> {
    log_sums: &'a [f64],
    ids: &'a [u32],
    logits: &'a [f32],
    /// Logits per row.
    count: usize,
}

/// The highest logits of one row.
#[derive(Clone, Copy, Debug)]
pub struct TopRow<'a> {
    /// Token ids, by falling logit; equal logits by rising id. -0 equals 0.
    pub ids: &'a [u32],
    /// Their logits.
    pub logits: &'a [f32],
    /// [`charlstm_int8::logsumexp::log_sum_exp`] of all logits of the row.
    pub log_sum_exp: f64,
}

impl<'a> TopLogits<'a> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.log_sums.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.log_sums.is_empty()
    }

    /// The result for a row.
    ///
    /// # Panics
    /// Panics if there is no such row.
    pub fn row(&self, row: usize) -> TopRow<'a> {
        TopRow {
            ids: &self.ids[row * TOP..][..self.count],
            logits: &self.logits[row * TOP..][..self.count],
            log_sum_exp: self.log_sums[row],
        }
    }
}

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

/// What a slot holds.
#[derive(Clone, Copy, Debug)]
struct SlotState {
    generation: u32,
    in_use: bool,
    /// Which of the slot's two state rows is current.
    parity: u32,
    /// Number of the last call that named the slot, to detect duplicates.
    call: u64,
}

/// Prefills of few sequences as one launch.
#[derive(Debug)]
struct WholePrefill {
    division: PrefillDivision,
    /// Most sequences.
    rows: usize,
    exchange: DeviceMemory,
    /// Sequence numbers used so far.
    base: u32,
}

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
    slots: Vec<SlotState>,
    free: Vec<u32>,
    calls: u64,
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
            slots: vec![
                SlotState {
                    generation: 0,
                    in_use: false,
                    parity: 0,
                    call: 0
                };
                capacity
            ],
            free: (0..capacity as u32).rev().collect(),
            calls: 0,
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
        self.slots.len()
    }

    /// Number of slots in use.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
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

    /// Adds a sequence with this state. Usually returns before the state has
    /// arrived on the device; later calls see it.
    ///
    /// # Errors
    /// Fails if all slots are in use, the state has another shape, or the
    /// device is lost.
    pub fn push(&mut self, state: &State) -> Result<Slot, CudaError> {
        self.check_usable()?;
        self.check_shape(state)?;
        let Some(&index) = self.free.last() else {
            return Err(CudaError::BatchFull {
                capacity: self.capacity(),
            });
        };
        self.upload(2 * index, state)?;
        self.free.pop();
        let slot = &mut self.slots[index as usize];
        slot.in_use = true;
        slot.parity = 0;
        Ok(Slot {
            index,
            generation: slot.generation,
        })
    }

    /// Replaces the state of a sequence.
    ///
    /// # Errors
    /// Fails if the slot is not in use, the state has another shape, or the
    /// device is lost.
    pub fn write(&mut self, slot: Slot, state: &State) -> Result<(), CudaError> {
        self.check_usable()?;
        self.check_shape(state)?;
        let row = self.state_row(slot)?;
        self.upload(row, state)
    }

    /// Returns the state of a sequence.
    ///
    /// # Errors
    /// As [`Self::read_all`].
    pub fn read(&mut self, slot: Slot) -> Result<State, CudaError> {
        let mut states = self.read_all(&[slot])?;
        // One state per slot.
        Ok(states.swap_remove(0))
    }

    /// Returns the states of several sequences, in order. Blocks until the
    /// device has sent them.
    ///
    /// # Errors
    /// Fails if a slot is not in use, or the device is lost or returns a
    /// damaged state.
    pub fn read_all(&mut self, slots: &[Slot]) -> Result<Vec<State>, CudaError> {
        const READING: &str = "reading states";
        self.check_usable()?;
        let rows = slots
            .iter()
            .map(|&slot| self.state_row(slot))
            .collect::<Result<Vec<_>, _>>()?;
        let mut states = Vec::with_capacity(rows.len());
        let bytes = self.layout.bytes();
        for rows in rows.chunks(self.staging_states) {
            self.complete(READING)?;
            // SAFETY: the stream has completed.
            let table = unsafe { self.host_table.values_mut() };
            table[..rows.len()].copy_from_slice(rows);
            let launch = launch::copy_states(
                self.states.address(),
                self.host_table.address(),
                self.staging.address(),
                rows.len(),
                bytes,
            );
            // SAFETY: the rows are within `states`, the list is in the table's
            // memory, and the staging memory has room for them. All stay
            // allocated, and the host uses them after the stream has completed.
            unsafe { launch_kernel(self.network.device(), &self.stream, &launch, false) }
                .inspect_err(|error| self.failure = Some(error.clone()))?;
            self.complete(READING)?;
            // SAFETY: the stream has completed.
            let staging = unsafe { self.staging.values() };
            for row in staging[..rows.len() * bytes].chunks_exact(bytes) {
                states.push(self.layout.unpack(row)?);
            }
        }
        Ok(states)
    }

    /// Removes a sequence. Its state is gone; [`Self::read`] it first.
    ///
    /// # Errors
    /// Fails if the slot is not in use.
    pub fn remove(&mut self, slot: Slot) -> Result<(), CudaError> {
        self.state_row(slot)?;
        let state = &mut self.slots[slot.index as usize];
        state.in_use = false;
        state.generation = state.generation.wrapping_add(1);
        self.free.push(slot.index);
        Ok(())
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
    pub fn step_top(&mut self, rows: &[(Slot, u32)]) -> Result<TopLogits<'_>, CudaError> {
        self.run_step(rows, true)?;
        // SAFETY: the stream has completed.
        let results = unsafe {
            (
                self.host_log_sums.values(),
                self.host_top_ids.values(),
                self.host_top_logits.values(),
            )
        };
        Ok(TopLogits {
            log_sums: &results.0[..rows.len()],
            ids: &results.1[..rows.len() * TOP],
            logits: &results.2[..rows.len() * TOP],
            count: self.network.shape().vocabulary_size().min(TOP),
        })
    }

    /// Runs a step and waits for it. `top`: with the highest logits only.
    fn run_step(&mut self, rows: &[(Slot, u32)], top: bool) -> Result<(), CudaError> {
        self.check_usable()?;
        self.begin_call();
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
            let row = 2 * slot.index + self.slots[slot.index as usize].parity;
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
            self.slots[slot.index as usize].parity ^= 1;
        }
        Ok(())
    }

    /// Feeds each of the sequences known characters, without logits: the same
    /// as a step per character, but all layers work at once and the host waits
    /// once per 64 characters or more. Sequences may have different lengths.
    /// Blocks until the device has finished; to keep decode steps responsive,
    /// pass few characters per call.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn prefill(&mut self, rows: &[(Slot, &[u32])]) -> Result<(), CudaError> {
        self.check_usable()?;
        self.begin_call();
        for &(slot, tokens) in rows {
            self.check_row(slot, tokens)?;
        }
        let mut remaining: Vec<(Slot, &[u32])> = rows.to_vec();
        loop {
            remaining.retain(|(_, tokens)| !tokens.is_empty());
            let Some(longest) = remaining.iter().map(|(_, tokens)| tokens.len()).max() else {
                return Ok(());
            };
            self.prefill_chunk(&mut remaining, longest, false)?;
        }
    }

    /// Feeds a sequence known characters and returns the logits after each of
    /// them, `[tokens][vocabulary]`, for scoring. Blocks until the device has
    /// finished; the caller bounds the number of characters.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn prefill_logits(&mut self, slot: Slot, tokens: &[u32]) -> Result<Vec<f32>, CudaError> {
        self.check_usable()?;
        self.begin_call();
        self.check_row(slot, tokens)?;
        let vocabulary = self.network.shape().vocabulary_size();
        let mut logits = Vec::with_capacity(tokens.len() * vocabulary);
        let mut rows = [(slot, tokens)];
        while let [(_, left)] = rows
            && !left.is_empty()
        {
            let characters = self.prefill_chunk(&mut rows, left.len(), true)?;
            // SAFETY: the stream has completed.
            let chunk = unsafe { self.host_logits.values() };
            logits.extend_from_slice(&chunk[..characters * vocabulary]);
        }
        Ok(logits)
    }

    /// Processes the first characters of each row and removes them from it.
    /// `longest` is the largest number that a row has. `history`: there is one
    /// row, and the logits after each of its characters are computed, too.
    /// Returns the number of characters of the longest row.
    fn prefill_chunk(
        &mut self,
        rows: &mut [(Slot, &[u32])],
        longest: usize,
        history: bool,
    ) -> Result<usize, CudaError> {
        const PREFILL: &str = "a prefill";
        let bucket = launch::bucket(rows.len());
        let whole = self
            .whole_prefill
            .as_ref()
            .is_some_and(|whole| rows.len() <= whole.rows);
        let characters = match (whole, history) {
            (true, _) => longest.min(MAX_WHOLE_CHUNK),
            (false, true) => longest.min(MAX_CHUNK),
            (false, false) => launch::chunk_characters(longest),
        };
        let key = (bucket, characters);
        if !whole && !history && !self.prefills.contains_key(&key) {
            let graph = self.capture_prefill(bucket, characters)?;
            self.prefills.insert(key, graph);
        }
        // SAFETY: as in `run_step`.
        let table = unsafe { self.host_table.values_mut() };
        table[0] = rows.len() as u32;
        let (entries, tokens) = table[TABLE_HEADER..].split_at_mut(bucket);
        for (place, (slot, characters_left)) in rows.iter().enumerate() {
            let row = 2 * slot.index + self.slots[slot.index as usize].parity;
            let length = characters_left.len().min(characters);
            entries[place] = table_entry(row, length);
            for (character, &token) in characters_left[..length].iter().enumerate() {
                tokens[character * bucket + place] = token;
            }
        }
        if whole || history {
            self.submit_prefill(whole, rows.len(), characters, history)
                .inspect_err(|error| self.failure = Some(error.clone()))?;
        } else {
            let Some(graph) = self.prefills.get_mut(&key) else {
                unreachable!("inserted above");
            };
            // SAFETY: as in `run_step`.
            let launched = unsafe { graph.launch() };
            self.completed(PREFILL, launched)?;
        }
        self.complete(PREFILL)?;
        for (slot, characters_left) in rows {
            let length = characters_left.len().min(characters);
            self.slots[slot.index as usize].parity ^= (length & 1) as u32;
            *characters_left = &characters_left[length..];
        }
        Ok(characters.min(longest))
    }

    /// Measures the device alone: the time per step of `repeats` steps of
    /// `rows` rows, one after the other, without the host in between. The
    /// sequences stay as they are. For benchmarks.
    ///
    /// # Errors
    /// Fails if fewer slots are in use, or the device fails.
    pub fn time_steps(&mut self, rows: usize, repeats: u32) -> Result<Duration, CudaError> {
        const TIMING: &str = "timing decode steps";
        let inputs: Vec<(Slot, u32)> = (0..self.slots.len() as u32)
            .filter(|&index| self.slots[index as usize].in_use)
            .map(|index| {
                let generation = self.slots[index as usize].generation;
                (Slot { index, generation }, 0)
            })
            .take(rows)
            .collect();
        if inputs.len() < rows || rows == 0 {
            return Err(CudaError::StaleSlot {
                index: inputs.len(),
            });
        }
        // Fills the table. The steps below all read what this one reads.
        self.step(&inputs)?;
        for &(slot, _) in &inputs {
            self.slots[slot.index as usize].parity ^= 1;
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

    /// Submits the prefill of the rows and characters in the host's table: as
    /// one kernel, or as one per wave. With `history`, also computes the logits
    /// after each character of the only row.
    fn submit_prefill(
        &mut self,
        whole: bool,
        rows: usize,
        characters: usize,
        history: bool,
    ) -> Result<(), CudaError> {
        let failed = |error| CudaError::driver("a prefill", error);
        let bucket = launch::bucket(rows);
        let addresses = BatchAddresses {
            states: self.states.address(),
            table: self.table.address(),
            logits: 0,
            history: if history { self.history.address() } else { 0 },
        };
        let exchange = whole.then(|| self.next_exchange(characters)).transpose()?;
        let network = self.network.addresses();
        let mut launches = match exchange {
            Some((exchange, division)) => vec![launch::whole_prefill(
                network, &addresses, &exchange, division, rows, characters,
            )],
            None => launch::prefill(network, &addresses, bucket, characters, self.tiles(bucket)),
        };
        let device = self.network.device();
        let stream = self.stream.cu_stream();
        device.bind()?;
        // SAFETY: the caller waits for the stream before the table is changed.
        let table = &unsafe { self.host_table.values() }[..table_words(bucket, characters)];
        // SAFETY: both sides have this size and stay allocated.
        unsafe { result::memcpy_htod_async(self.table.address(), table, stream) }
            .map_err(failed)?;
        if history {
            // The number of rows of the second table, which is otherwise
            // constant.
            // SAFETY: the table has a header.
            unsafe {
                cudarc::driver::sys::cuMemsetD32Async(
                    self.history_table.address(),
                    characters as u32,
                    1,
                    stream,
                )
            }
            .result()
            .map_err(failed)?;
            let rows = OutputRows {
                address: self.history.address(),
                row_bytes: network.hidden as u64,
                table: self.history_table.address(),
                logits: self.logits.address(),
            };
            let bucket = launch::bucket(characters);
            let tile = self.tiles(bucket).output;
            launches.push(launch::output(network, &rows, bucket, tile));
        }
        for launch in &launches {
            // SAFETY: the addresses are those of the batch and its network,
            // whose sizes are those of the grid.
            unsafe { launch_kernel(device, &self.stream, launch, false) }?;
        }
        if history {
            self.copy_logits(characters * network.vocabulary)?;
        }
        Ok(())
    }

    /// Reserves sequence numbers for a prefill as one kernel.
    fn next_exchange(
        &mut self,
        characters: usize,
    ) -> Result<(Exchange, PrefillDivision), CudaError> {
        let waves = Exchange::waves(self.network.addresses().layers, characters);
        let Some(whole) = &mut self.whole_prefill else {
            unreachable!("the caller has checked it");
        };
        if whole.base.checked_add(waves).is_none() {
            // Sequence numbers begin again: none of the old ones may remain.
            whole
                .exchange
                .clear(&self.stream)
                .map_err(|error| CudaError::driver("a prefill", error))?;
            whole.base = 0;
        }
        let exchange = Exchange {
            address: whole.exchange.address(),
            base: whole.base,
        };
        whole.base += waves;
        Ok((exchange, whole.division))
    }

    /// Submits the copy of the first `count` logits to the host.
    fn copy_logits(&self, count: usize) -> Result<(), CudaError> {
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

    fn tiles(&self, bucket: usize) -> TileChoice {
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
    fn capture_step(&self, bucket: usize) -> Result<Graph, CudaError> {
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
    fn capture_top_step(&self, bucket: usize) -> Result<Graph, CudaError> {
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
    fn capture_prefill(&self, bucket: usize, characters: usize) -> Result<Graph, CudaError> {
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

    /// Copies a state to a state row, through the staging memory.
    fn upload(&mut self, row: u32, state: &State) -> Result<(), CudaError> {
        const WRITING: &str = "writing a state";
        if self.staged == self.staging_states {
            self.complete(WRITING)?;
        }
        let bytes = self.layout.bytes();
        let start = self.staged * bytes;
        // SAFETY: copies from the staging memory that are in progress end
        // before `start`, and the slice from there is used exclusively.
        let place = unsafe {
            std::slice::from_raw_parts_mut((self.staging.address() as *mut u8).add(start), bytes)
        };
        self.layout.pack(state, place);
        let to = self.states.address() + (row as usize * bytes) as u64;
        self.network.device().bind()?;
        // SAFETY: the row is within `states`, and the place in the staging
        // memory is not used again before the stream has completed.
        let copied = unsafe { result::memcpy_htod_async(to, place, self.stream.cu_stream()) };
        self.staged += 1;
        self.completed(WRITING, copied)
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

    fn check_shape(&self, state: &State) -> Result<(), CudaError> {
        let shape = self.network.shape();
        if state.fits(shape) {
            return Ok(());
        }
        Err(CudaError::StateShape {
            given: state.h().len(),
            expected: shape.num_layers() * shape.hidden_size(),
        })
    }

    /// The current state row of a slot.
    fn state_row(&self, slot: Slot) -> Result<u32, CudaError> {
        let index = slot.index as usize;
        match self.slots.get(index) {
            Some(state) if state.in_use && state.generation == slot.generation => {
                Ok(2 * slot.index + state.parity)
            }
            _ => Err(CudaError::StaleSlot { index }),
        }
    }

    fn begin_call(&mut self) {
        self.calls += 1;
    }

    /// Checks a row of a call, and that the call has not named its slot before.
    fn check_row(&mut self, slot: Slot, tokens: &[u32]) -> Result<(), CudaError> {
        self.state_row(slot)?;
        let index = slot.index as usize;
        if self.slots[index].call == self.calls {
            return Err(CudaError::DuplicateSlot { index });
        }
        self.slots[index].call = self.calls;
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
