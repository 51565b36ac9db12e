//! CUDA devices and the kernels that are loaded on them.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;

use crate::compiler::{self, CompiledKernels};
use crate::error::CudaError;
use crate::launch::{Kernel, MAX_WHOLE_PREFILL_ROWS, PREFILL_TILE_ROWS, PrefillDivision, TILES};
use crate::library::require_driver;

/// Oldest generation whose tensor cores multiply int8 as the kernels do.
const MIN_MAJOR: u32 = 8;

/// First driver version that can capture programmatic dependent launches in a
/// graph, as the driver counts: 1000 * major + 10 * minor.
const PROGRAMMATIC_GRAPH_DRIVER: i32 = 12_030;

/// First generation with programmatic dependent launch.
const PROGRAMMATIC_MAJOR: u32 = 9;

/// A CUDA device of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of the device, from 0, in the driver's order
    /// (`CUDA_VISIBLE_DEVICES` changes it).
    pub ordinal: usize,
    /// Name of the device, for example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Bytes of device memory.
    pub memory_bytes: usize,
    /// Compute capability, major and minor number.
    pub compute_capability: (u32, u32),
    /// Number of multiprocessors.
    pub multiprocessors: usize,
}

impl DeviceInfo {
    /// Fails if the kernels cannot run on the device.
    fn check(&self) -> Result<(), CudaError> {
        let (major, minor) = self.compute_capability;
        if major < MIN_MAJOR {
            return Err(CudaError::UnsupportedDevice {
                name: self.name.clone(),
                major,
                minor,
            });
        }
        Ok(())
    }
}

/// Lists the CUDA devices of this machine, without opening any.
///
/// # Errors
/// Fails if the driver is not installed or reports an error. A machine with a
/// driver and no device gives an empty list.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    require_driver()?;
    let failed = |error| CudaError::driver("listing the GPUs", error);
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    }
    let count = result::device::get_count().map_err(failed)?;
    (0..usize::try_from(count).unwrap_or(0))
        .map(|ordinal| info(ordinal).map_err(failed))
        .collect()
}

fn info(ordinal: usize) -> Result<DeviceInfo, DriverError> {
    let device = result::device::get(ordinal as i32)?;
    // SAFETY: the handle was just returned by the driver.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(DeviceInfo {
        ordinal,
        name: result::device::get_name(device)?,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }?,
        compute_capability: (major.unsigned_abs(), minor.unsigned_abs()),
        multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
    })
}

/// An open device with the kernels loaded on it. Clones share the device.
#[derive(Clone, Debug)]
pub struct CudaDevice(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    info: DeviceInfo,
    context: Arc<CudaContext>,
    layer_kernels: Vec<CudaFunction>,
    output_kernels: Vec<CudaFunction>,
    /// By groups of 8 units per block: 1 and 2.
    prefill_kernels: [CudaFunction; 2],
    top_kernel: CudaFunction,
    copy_kernel: CudaFunction,
    score_wave_kernel: CudaFunction,
    score_logits_kernel: CudaFunction,
    shared_bytes: usize,
    programmatic_launch: bool,
    log: String,
}

impl CudaDevice {
    /// Opens a device, and compiles and loads the kernels, which takes several
    /// seconds. The device's primary context is used, which other libraries in
    /// the process share.
    ///
    /// # Errors
    /// Fails if the driver or NVRTC is not installed, the device does not
    /// exist or is too old, or the driver reports an error.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let info = Self::find(ordinal)?;
        let (major, minor) = info.compute_capability;
        let kernels = compiler::compile_kernels(&compiler::target(major, minor)?)?;
        Self::with_kernels(info, &kernels)
    }

    /// Opens a device with kernels that
    /// [`compile_kernels`](crate::compile_kernels) compiled.
    ///
    /// # Errors
    /// As [`Self::open`]; also fails if the kernels are for another
    /// architecture.
    pub fn open_with(ordinal: usize, kernels: &CompiledKernels) -> Result<Self, CudaError> {
        Self::with_kernels(Self::find(ordinal)?, kernels)
    }

    fn find(ordinal: usize) -> Result<DeviceInfo, CudaError> {
        let mut devices = devices()?;
        if ordinal >= devices.len() {
            return Err(CudaError::NoSuchDevice {
                ordinal,
                available: devices.len(),
            });
        }
        let info = devices.swap_remove(ordinal);
        info.check()?;
        Ok(info)
    }

    fn with_kernels(info: DeviceInfo, kernels: &CompiledKernels) -> Result<Self, CudaError> {
        let failed = |error| CudaError::driver("opening the GPU", error);
        let context = CudaContext::new(info.ordinal).map_err(failed)?;
        let failed = |error| CudaError::driver("loading the kernels", error);
        let module = context
            .load_module(Ptx::from_binary(kernels.image().to_vec()))
            .map_err(failed)?;
        let load = |kind: &str| -> Result<Vec<CudaFunction>, CudaError> {
            TILES
                .iter()
                .map(|tile| {
                    let function = module.load_function(&format!("{kind}_{}", tile.rows))?;
                    function.set_attribute(
                        CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                        tile.shared_bytes() as i32,
                    )?;
                    Ok(function)
                })
                .collect::<Result<_, DriverError>>()
                .map_err(failed)
        };
        let shared_bytes = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(failed)?;
        let load_prefill = |name| -> Result<CudaFunction, DriverError> {
            let function = module.load_function(name)?;
            function.set_attribute(
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes,
            )?;
            Ok(function)
        };
        let prefill_kernels = [
            load_prefill("prefill_8").map_err(failed)?,
            load_prefill("prefill_16").map_err(failed)?,
        ];
        let mut driver_version = 0;
        // SAFETY: the version can be written to.
        unsafe { sys::cuDriverGetVersion(&mut driver_version) }
            .result()
            .map_err(failed)?;
        let programmatic_launch = info.compute_capability.0 >= PROGRAMMATIC_MAJOR
            && driver_version >= PROGRAMMATIC_GRAPH_DRIVER;
        Ok(Self(Arc::new(Inner {
            layer_kernels: load("layer")?,
            output_kernels: load("output")?,
            prefill_kernels,
            shared_bytes: usize::try_from(shared_bytes).unwrap_or(0),
            top_kernel: module.load_function("top_logits").map_err(failed)?,
            copy_kernel: module.load_function("copy_states").map_err(failed)?,
            score_wave_kernel: module.load_function("score_wave").map_err(failed)?,
            score_logits_kernel: module.load_function("score_logits").map_err(failed)?,
            info,
            context,
            programmatic_launch,
            log: kernels.log().to_owned(),
        })))
    }

    /// What the driver says about the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Bytes of device memory that are free now.
    ///
    /// # Errors
    /// Fails if the device is lost.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        let (free, _) = self
            .0
            .context
            .mem_get_info()
            .map_err(|error| CudaError::driver("reading the free memory", error))?;
        Ok(free)
    }

    /// The messages of the compiler about the loaded kernels.
    pub fn compiler_log(&self) -> &str {
        &self.0.log
    }

    /// Whether consecutive kernels can overlap on this device and driver.
    pub(crate) fn programmatic_launch(&self) -> bool {
        self.0.programmatic_launch
    }

    pub(crate) fn function(&self, kernel: &Kernel) -> &CudaFunction {
        match *kernel {
            Kernel::Layer { tile, .. } => &self.0.layer_kernels[tile],
            Kernel::Output { tile, .. } => &self.0.output_kernels[tile],
            Kernel::Prefill { division, .. } => &self.0.prefill_kernels[division.groups - 1],
            Kernel::Top(_) => &self.0.top_kernel,
            Kernel::CopyStates(_) => &self.0.copy_kernel,
            Kernel::ScoreWave(_) => &self.0.score_wave_kernel,
            Kernel::ScoreLogits(_) => &self.0.score_logits_kernel,
        }
    }

    /// How the device can prefill all characters of a few rows in one launch,
    /// and of how many rows: all blocks must fit on it at the same time. `None`
    /// if the network is too large for that.
    pub(crate) fn whole_prefill(
        &self,
        hidden: usize,
        layers: usize,
    ) -> Result<Option<(PrefillDivision, usize)>, CudaError> {
        self.bind()?;
        for division in PrefillDivision::all(hidden, layers) {
            if division.shared_bytes() > self.0.shared_bytes {
                continue;
            }
            let per_multiprocessor = self.0.prefill_kernels[division.groups - 1]
                .occupancy_max_active_blocks_per_multiprocessor(
                    division.threads() as u32,
                    division.shared_bytes(),
                    None,
                )
                .map_err(|error| CudaError::driver("reading the occupancy", error))?;
            let blocks = per_multiprocessor as usize * self.0.info.multiprocessors;
            let rows = blocks / division.blocks() * PREFILL_TILE_ROWS;
            if rows > 0 {
                return Ok(Some((division, rows.min(MAX_WHOLE_PREFILL_ROWS))));
            }
        }
        Ok(None)
    }

    /// Makes the device's context current on the calling thread.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.0
            .context
            .bind_to_thread()
            .map_err(|error| CudaError::driver("selecting the GPU", error))
    }

    /// Creates a stream of the highest priority: the blocks of a decode step
    /// are scheduled before those of a training on the same device.
    pub(crate) fn stream(&self) -> Result<Arc<CudaStream>, CudaError> {
        let failed = |error| CudaError::driver("creating a stream", error);
        self.bind()?;
        let (_, greatest) = result::stream::get_priority_range().map_err(failed)?;
        self.0
            .context
            .new_stream_with_priority(greatest)
            .map_err(failed)
    }
}
