//! Memory that the threads of a team share. They divide it differently in each phase
//! of a step.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;

/// Alignment in bytes: a cache line and the widest register.
const ALIGNMENT: usize = 64;

/// A type whose value with all bits zero is valid, and is its zero.
///
/// # Safety
/// As said.
pub(crate) unsafe trait Zero: Copy + Send + Sync + 'static {}

// SAFETY: all bits zero is the number 0.
unsafe impl Zero for f32 {}
// SAFETY: as above.
unsafe impl Zero for f64 {}
// SAFETY: as above.
unsafe impl Zero for u16 {}
// SAFETY: as above.
unsafe impl Zero for u8 {}

/// A fixed number of values in aligned memory. Between two barriers, a value is
/// either written by one member, which no other reads, or only read.
pub(crate) struct SharedBuffer<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer owns its memory, and the values can be sent.
unsafe impl<T: Zero> Send for SharedBuffer<T> {}
// SAFETY: the unsafe methods require that no two threads access a value of which
// one writes it.
unsafe impl<T: Zero> Sync for SharedBuffer<T> {}

impl<T> SharedBuffer<T> {
    fn layout(len: usize) -> Layout {
        let layout = Layout::array::<T>(len.max(1)).and_then(|layout| layout.align_to(ALIGNMENT));
        layout.expect("the size of a buffer was checked against the memory of the machine")
    }
}

impl<T> Drop for SharedBuffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) };
    }
}

impl<T: Zero> SharedBuffer<T> {
    /// Allocates zeros.
    pub(crate) fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout has at least one value.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }.cast());
        let Some(start) = start else {
            handle_alloc_error(layout)
        };
        Self { start, len }
    }

    /// Returns the number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns a part for reading.
    ///
    /// # Safety
    /// While the slice exists, nobody writes to it.
    ///
    /// # Panics
    /// If the range is not inside the buffer.
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &[T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?}"
        );
        // SAFETY: the range is inside the buffer; nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Returns a part for writing.
    ///
    /// # Safety
    /// While the slice exists, nobody else accesses it.
    ///
    /// # Panics
    /// If the range is not inside the buffer.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?}"
        );
        // SAFETY: the range is inside the buffer; nobody else accesses it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Returns the address of the value at `index`, for a product that writes to
    /// some columns of a matrix.
    ///
    /// # Panics
    /// If the index is not inside the buffer.
    pub(crate) fn address(&self, index: usize) -> *mut T {
        assert!(index < self.len, "{index}");
        // SAFETY: the index is inside the buffer.
        unsafe { self.start.as_ptr().add(index) }
    }

    /// Returns all values.
    pub(crate) fn all(&mut self) -> &mut [T] {
        // SAFETY: the buffer is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
