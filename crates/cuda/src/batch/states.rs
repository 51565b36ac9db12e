//! The states of a batch: sequences are added, replaced, read and removed.

use charlstm_int8::State;
use cudarc::driver::result;

use super::{CudaBatch, Slot};
use crate::error::CudaError;
use crate::graph::launch_kernel;
use crate::launch;

impl CudaBatch {
    /// Adds a sequence with this state. Usually returns before the state has
    /// arrived on the device; later calls see it.
    ///
    /// # Errors
    /// Fails if all slots are in use, the state has another shape, or the
    /// device is lost.
    pub fn push(&mut self, state: &State) -> Result<Slot, CudaError> {
        self.check_usable()?;
        self.check_shape(state)?;
        let row = self.slots.next_row()?;
        self.upload(row, state)?;
        self.slots.take()
    }

    /// Replaces the state of a sequence.
    ///
    /// # Errors
    /// Fails if the slot is not in use, the state has another shape, or the
    /// device is lost.
    pub fn write(&mut self, slot: Slot, state: &State) -> Result<(), CudaError> {
        self.check_usable()?;
        self.check_shape(state)?;
        let row = self.slots.row(slot)?;
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
            .map(|&slot| self.slots.row(slot))
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
        self.slots.remove(slot)
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
}
