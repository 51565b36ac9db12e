//! Owned device memory and page-locked host memory.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdeviceptr, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use crate::error::CudaError;

/// A number that may have any bit pattern.
///
/// # Safety
/// The type has no padding and no invalid bit patterns.
pub(crate) unsafe trait Number: Copy {}

// SAFETY: integers and floats have no padding and no invalid bit patterns.
unsafe impl Number for u8 {}
// SAFETY: as above.
unsafe impl Number for i8 {}
// SAFETY: as above.
unsafe impl Number for u32 {}
// SAFETY: as above.
unsafe impl Number for f32 {}
// SAFETY: as above.
unsafe impl Number for f64 {}

fn allocation_error(what: &'static str, bytes: usize, error: DriverError) -> CudaError {
    if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        let free = result::mem_get_info().map_or(0, |(free, _)| free);
        CudaError::OutOfMemory { what, bytes, free }
    } else {
        CudaError::driver("allocating memory", error)
    }
}

/// Memory on a device. Freed when dropped, which waits for the device.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    address: CUdeviceptr,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl DeviceMemory {
    /// Allocates `bytes` (at least 1), all zero, in stream order.
    pub(crate) fn zeroed(
        stream: &CudaStream,
        what: &'static str,
        bytes: usize,
    ) -> Result<Self, CudaError> {
        let context = stream.context().clone();
        let failed = |error| CudaError::driver("allocating memory", error);
        context.bind_to_thread().map_err(failed)?;
        let bytes = bytes.max(1);
        // SAFETY: the context is current; the memory is initialised below.
        let address = unsafe { result::malloc_sync(bytes) }
            .map_err(|error| allocation_error(what, bytes, error))?;
        let memory = Self {
            address,
            bytes,
            context,
        };
        memory.clear(stream).map_err(failed)?;
        Ok(memory)
    }

    /// Allocates memory with the contents of a slice. Blocks until it is
    /// copied.
    pub(crate) fn copied<T: Number>(
        stream: &CudaStream,
        what: &'static str,
        values: &[T],
    ) -> Result<Self, CudaError> {
        let memory = Self::zeroed(stream, what, size_of_val(values))?;
        let failed = |error| CudaError::driver("copying to the GPU", error);
        if !values.is_empty() {
            // SAFETY: both sides have this size, and `values` is borrowed until
            // the stream has completed below.
            let copied =
                unsafe { result::memcpy_htod_async(memory.address, values, stream.cu_stream()) };
            let completed = stream.synchronize();
            copied.and(completed).map_err(failed)?;
        }
        Ok(memory)
    }

    /// Sets all bytes to zero, in stream order.
    pub(crate) fn clear(&self, stream: &CudaStream) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: the memory has this size.
        unsafe { result::memset_d8_async(self.address, 0, self.bytes, stream.cu_stream()) }
    }

    pub(crate) fn address(&self) -> CUdeviceptr {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // After the loss of the device there is nothing left to free, and
        // nobody to report it to.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the memory was allocated in this context and is freed
            // once. The driver waits for kernels that use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked host memory that the device reads and writes directly.
#[derive(Debug)]
pub(crate) struct PinnedMemory<T> {
    start: NonNull<T>,
    length: usize,
    context: Arc<CudaContext>,
}

// SAFETY: it owns its memory, and T is a plain number.
unsafe impl<T: Number> Send for PinnedMemory<T> {}

impl<T: Number> PinnedMemory<T> {
    /// Allocates `length` numbers (at least 1), all zero.
    pub(crate) fn zeroed(
        context: &Arc<CudaContext>,
        what: &'static str,
        length: usize,
    ) -> Result<Self, CudaError> {
        let failed = |error| CudaError::driver("allocating memory", error);
        context.bind_to_thread().map_err(failed)?;
        let length = length.max(1);
        let bytes = length * size_of::<T>();
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: the context is current; the memory is initialised below.
        let start = unsafe { result::malloc_host(bytes, flags) }
            .map_err(|error| allocation_error(what, bytes, error))?;
        let start = NonNull::new(start.cast::<T>()).ok_or(CudaError::OutOfMemory {
            what,
            bytes,
            free: 0,
        })?;
        // SAFETY: the memory has this size; pages are aligned for any number.
        unsafe { start.as_ptr().write_bytes(0, length) };
        Ok(Self {
            start,
            length,
            context: context.clone(),
        })
    }

    /// The address for kernels. With unified addressing, which every supported
    /// device has, it is the host's own address.
    pub(crate) fn address(&self) -> CUdeviceptr {
        self.start.as_ptr() as CUdeviceptr
    }

    pub(crate) fn bytes(&self) -> usize {
        self.length * size_of::<T>()
    }

    /// The numbers.
    ///
    /// # Safety
    /// No work that writes this memory may be in progress on the device.
    pub(crate) unsafe fn values(&self) -> &[T] {
        // SAFETY: the memory is initialised and lives as long as `self`; the
        // caller excludes writes by the device.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// The numbers, to be changed.
    ///
    /// # Safety
    /// No work that uses this memory may be in progress on the device.
    pub(crate) unsafe fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `values`; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<T> Drop for PinnedMemory<T> {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: `malloc_host` returned this address, and it is freed
            // once. The driver waits for work that uses it.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast::<c_void>()) };
        }
    }
}
