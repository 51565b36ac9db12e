//! Known characters: all layers work at once, on different characters.

use cudarc::driver::result;

use super::{CudaBatch, Slot};
use crate::error::CudaError;
use crate::graph::launch_kernel;
use crate::launch::{
    self, BatchAddresses, Exchange, MAX_CHUNK, MAX_WHOLE_CHUNK, OutputRows, PrefillDivision,
    TABLE_HEADER, table_entry, table_words,
};
use crate::memory::DeviceMemory;

/// Prefills of few sequences as one launch.
#[derive(Debug)]
pub(super) struct WholePrefill {
    pub(super) division: PrefillDivision,
    /// Maximum number of sequences.
    pub(super) rows: usize,
    pub(super) exchange: DeviceMemory,
    /// Sequence numbers used so far.
    pub(super) base: u32,
}

impl CudaBatch {
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
        self.slots.begin_call();
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
        self.slots.begin_call();
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
            let row = self.slots.row(*slot)?;
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
            self.slots.advance(*slot, length);
            *characters_left = &characters_left[length..];
        }
        Ok(characters.min(longest))
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
}
