//! Checks that the libraries that are loaded at run time are there.
//!
//! cudarc loads libcuda and libnvrtc when one of their functions is first
//! called, and panics if the library or the function does not exist. These
//! checks come first and return an error instead.

use std::sync::OnceLock;

use cudarc::{driver, nvrtc};

use crate::error::CudaError;

const DRIVER: &str = "libcuda.so.1";
const COMPILER: &str = "libnvrtc.so";

/// The functions of the driver that this crate calls, under the names by which
/// they are looked up.
const DRIVER_FUNCTIONS: [&str; 43] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuGetErrorString",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemsetD8Async",
    "cuMemsetD32Async",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
    "cuLaunchKernelEx",
    "cuCtxSynchronize",
    "cuCtxGetStreamPriorityRange",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuEventCreate",
    "cuEventRecord",
    "cuStreamWaitEvent",
    "cuEventDestroy_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuGraphLaunch",
    "cuGraphUpload",
];

const COMPILER_FUNCTIONS: [&str; 12] = [
    "nvrtcVersion",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetSupportedArchs",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcGetPTXSize",
    "nvrtcGetPTX",
];

/// Fails if the driver's library cannot be loaded or lacks a function.
pub(crate) fn require_driver() -> Result<(), CudaError> {
    static CHECKED: OnceLock<Result<(), CudaError>> = OnceLock::new();
    CHECKED
        .get_or_init(|| {
            // SAFETY: loading a library runs its initialisers; libcuda's have
            // no precondition.
            if !unsafe { driver::sys::is_culib_present() } {
                return Err(CudaError::LibraryMissing {
                    library: DRIVER,
                    remedy: "install the NVIDIA driver, or pass its libraries to the container",
                });
            }
            for function in DRIVER_FUNCTIONS {
                // SAFETY: the library exists, so this does not panic. The
                // symbol is only looked up, not called.
                let symbol = unsafe {
                    driver::sys::culib().get::<unsafe extern "C" fn()>(function.as_bytes())
                };
                if symbol.is_err() {
                    return Err(CudaError::FunctionMissing {
                        library: DRIVER,
                        function,
                    });
                }
            }
            Ok(())
        })
        .clone()
}

/// Fails if NVRTC's library cannot be loaded or lacks a function.
pub(crate) fn require_compiler() -> Result<(), CudaError> {
    static CHECKED: OnceLock<Result<(), CudaError>> = OnceLock::new();
    CHECKED
        .get_or_init(|| {
            // SAFETY: as in `require_driver`.
            if !unsafe { nvrtc::sys::is_culib_present() } {
                return Err(CudaError::LibraryMissing {
                    library: COMPILER,
                    remedy: "install NVRTC 12 or 13 (the CUDA toolkit, or `pip install \
                             nvidia-cuda-nvrtc`) and add its folder to LD_LIBRARY_PATH",
                });
            }
            for function in COMPILER_FUNCTIONS {
                // SAFETY: as in `require_driver`.
                let symbol = unsafe {
                    nvrtc::sys::culib().get::<unsafe extern "C" fn()>(function.as_bytes())
                };
                if symbol.is_err() {
                    return Err(CudaError::FunctionMissing {
                        library: COMPILER,
                        function,
                    });
                }
            }
            Ok(())
        })
        .clone()
}
