//! Which slots of a batch are in use, and which of its two state rows each has.

use crate::error::CudaError;

/// A sequence in a [`CudaBatch`](super::CudaBatch).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct SlotState {
    generation: u32,
    in_use: bool,
    /// Which of the slot's two state rows is current.
    parity: u32,
    /// Number of the last call that named the slot, to detect duplicates.
    call: u64,
}

/// The slots of a batch.
pub(super) struct SlotTable {
    slots: Vec<SlotState>,
    free: Vec<u32>,
    calls: u64,
}

impl SlotTable {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            slots: vec![SlotState::default(); capacity],
            free: (0..capacity as u32).rev().collect(),
            calls: 0,
        }
    }

    /// Number of slots.
    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Number of slots in use.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The first `count` slots in use.
    pub(super) fn first(&self, count: usize) -> Vec<Slot> {
        let slots = (0..).zip(&self.slots).filter(|(_, state)| state.in_use);
        let slots = slots.map(|(index, state)| Slot {
            index,
            generation: state.generation,
        });
        slots.take(count).collect()
    }

    /// The state row that the next slot begins with.
    ///
    /// # Errors
    /// All slots are in use.
    pub(super) fn next_row(&self) -> Result<u32, CudaError> {
        match self.free.last() {
            Some(index) => Ok(2 * index),
            None => Err(CudaError::BatchFull {
                capacity: self.capacity(),
            }),
        }
    }

    /// Takes the slot of [`Self::next_row`], whose state has been written.
    ///
    /// # Errors
    /// As [`Self::next_row`].
    pub(super) fn take(&mut self) -> Result<Slot, CudaError> {
        let index = self.next_row()? / 2;
        self.free.pop();
        let slot = &mut self.slots[index as usize];
        slot.in_use = true;
        slot.parity = 0;
        Ok(Slot {
            index,
            generation: slot.generation,
        })
    }

    /// Frees a slot.
    ///
    /// # Errors
    /// The slot is not in use.
    pub(super) fn remove(&mut self, slot: Slot) -> Result<(), CudaError> {
        self.row(slot)?;
        let state = &mut self.slots[slot.index as usize];
        state.in_use = false;
        state.generation = state.generation.wrapping_add(1);
        self.free.push(slot.index);
        Ok(())
    }

    /// The current state row of a slot.
    ///
    /// # Errors
    /// The slot is not in use.
    pub(super) fn row(&self, slot: Slot) -> Result<u32, CudaError> {
        let index = slot.index as usize;
        match self.slots.get(index) {
            Some(state) if state.in_use && state.generation == slot.generation => {
                Ok(2 * slot.index + state.parity)
            }
            _ => Err(CudaError::StaleSlot { index }),
        }
    }

    /// Records that a slot, which is in use, was fed this number of characters:
    /// each step writes the other state row.
    pub(super) fn advance(&mut self, slot: Slot, characters: usize) {
        self.slots[slot.index as usize].parity ^= (characters & 1) as u32;
    }

    /// Begins a call, which may name each slot once.
    pub(super) fn begin_call(&mut self) {
        self.calls += 1;
    }

    /// Checks a slot that the present call names.
    ///
    /// # Errors
    /// The slot is not in use, or the call has named it before.
    pub(super) fn name(&mut self, slot: Slot) -> Result<(), CudaError> {
        self.row(slot)?;
        let index = slot.index as usize;
        if self.slots[index].call == self.calls {
            return Err(CudaError::DuplicateSlot { index });
        }
        self.slots[index].call = self.calls;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_taken_used_and_freed() {
        let mut table = SlotTable::new(2);
        let row = table.next_row().expect("a free slot");
        let a = table.take().expect("a free slot");
        assert_eq!(table.row(a), Ok(row));
        table.advance(a, 3);
        assert_eq!(table.row(a), Ok(row + 1), "an odd number of characters");
        let b = table.take().expect("a free slot");
        assert_eq!(table.take(), Err(CudaError::BatchFull { capacity: 2 }));
        assert_eq!((table.len(), table.first(5)), (2, vec![a, b]));
        table.remove(a).expect("in use");
        assert!(table.row(a).is_err() && table.remove(a).is_err());
        let again = table.take().expect("a free slot");
        assert_eq!(table.row(again), Ok(row));
        assert!(table.row(a).is_err(), "the old handle stays invalid");
    }

    #[test]
    fn a_call_may_name_a_slot_once() {
        let mut table = SlotTable::new(1);
        let slot = table.take().expect("a free slot");
        for _ in 0..2 {
            table.begin_call();
            assert_eq!(table.name(slot), Ok(()));
            let twice = table.name(slot);
            assert!(matches!(twice, Err(CudaError::DuplicateSlot { .. })));
        }
    }
}
