//! Launch sequences as CUDA graphs: the driver starts a whole decode step with
//! one call.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUlaunchAttributeID, CUstreamCaptureMode};
use cudarc::driver::{CudaStream, DriverError, result};

use crate::device::CudaDevice;
use crate::error::CudaError;
use crate::launch::{Kernel, Launch};

const CAPTURING: &str = "preparing a launch sequence";

/// An instantiated graph on one stream.
pub(crate) struct Graph {
    executable: sys::CUgraphExec,
    stream: Arc<CudaStream>,
}

// SAFETY: the driver's objects may be used from any thread, by one at a time,
// and all methods that use the graph take `&mut self`.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `operations` submits to `stream` and instantiates it.
    ///
    /// # Safety
    /// All memory that the operations use must stay allocated until the graph
    /// is dropped.
    pub(crate) unsafe fn capture(
        stream: &Arc<CudaStream>,
        operations: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Self, CudaError> {
        let failed = |error| CudaError::driver(CAPTURING, error);
        // Thread-local: other threads may allocate and copy meanwhile.
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(failed)?;
        let recorded = operations();
        // Also after an error: the stream must leave capture mode.
        // SAFETY: the stream is capturing.
        let graph = unsafe { result::stream::end_capture(stream.cu_stream()) };
        recorded?;
        let graph = graph.map_err(failed)?;
        // SAFETY: the driver just returned the graph.
        let executable =
            unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above; the executable graph does not need it any more.
        let destroyed = unsafe { result::graph::destroy(graph) };
        let graph = Self {
            executable: executable.map_err(failed)?,
            stream: stream.clone(),
        };
        destroyed.map_err(failed)?;
        // SAFETY: graph and stream are valid.
        unsafe { result::graph::upload(graph.executable, stream.cu_stream()) }.map_err(failed)?;
        Ok(graph)
    }

    /// Starts the graph. Does not wait.
    ///
    /// # Safety
    /// Until the stream has completed it, the host must not touch memory that
    /// the graph uses.
    pub(crate) unsafe fn launch(&mut self) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        // SAFETY: graph and stream are valid.
        unsafe { result::graph::launch(self.executable, self.stream.cu_stream()) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.stream.context().bind_to_thread().is_ok() {
            // SAFETY: the graph is destroyed once. The driver waits for a
            // launch in progress.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

/// Submits a kernel to a stream. `overlap`: it may start while the kernel
/// before it on the stream is still running, and waits for it itself.
///
/// # Safety
/// The arguments must point to memory of the sizes that the kernel uses, which
/// stays allocated until the kernel has completed.
pub(crate) unsafe fn launch_kernel(
    device: &CudaDevice,
    stream: &CudaStream,
    launch: &Launch,
    overlap: bool,
) -> Result<(), CudaError> {
    let attribute = |id, value| sys::CUlaunchAttribute {
        id,
        pad: [0; 4],
        value,
    };
    let mut attributes = Vec::new();
    if overlap {
        attributes.push(attribute(
            CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        ));
    }
    if matches!(launch.kernel, Kernel::Prefill { .. }) {
        attributes.push(attribute(
            CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            sys::CUlaunchAttributeValue { cooperative: 1 },
        ));
    }
    let [x, y, z] = launch.grid;
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: launch.threads() as u32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared_bytes() as u32,
        hStream: stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    };
    let mut parameters = [launch.arguments().cast_mut()];
    // SAFETY: the configuration and the one parameter live until the call
    // returns, which copies them; the kernel only reads its parameter.
    unsafe {
        sys::cuLaunchKernelEx(
            &config,
            device.function(&launch.kernel).cu_function(),
            parameters.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .map_err(|error| CudaError::driver("launching a kernel", error))
}
