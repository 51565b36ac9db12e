//! Compiles the kernel sources with NVRTC.

use std::ffi::{CStr, CString, c_char, c_int};

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;

use crate::error::CudaError;
use crate::library::require_compiler;

/// The sources as one text; `#line` keeps the compiler's messages exact.
const SOURCE: &str = concat!(
    "#line 1 \"arithmetic.cuh\"\n",
    include_str!("kernels/arithmetic.cuh"),
    "#line 1 \"device.cuh\"\n",
    include_str!("kernels/device.cuh"),
    "#line 1 \"decode.cu\"\n",
    include_str!("kernels/decode.cu"),
    "#line 1 \"score.cu\"\n",
    include_str!("kernels/score.cu"),
);

/// Kernels as the driver loads them. Only [`compile_kernels`] makes them, so a
/// device never runs anything else.
#[derive(Clone, Debug)]
pub struct CompiledKernels {
    image: Vec<u8>,
    log: String,
}

impl CompiledKernels {
    /// A cubin, or PTX with a final zero byte.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// The compiler's messages, with the registers and the spilled bytes of
    /// each kernel if the image is a cubin.
    pub fn log(&self) -> &str {
        &self.log
    }
}

/// A program of NVRTC.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: `create_program` made it, and nothing else destroys it. The
        // only possible error is an invalid program, which it is not.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles all kernels. `target` is `sm_XY` for machine code or `compute_XY`
/// for PTX, which the driver translates. Takes several seconds. Needs
/// libnvrtc, but no device and no driver.
///
/// # Errors
/// Fails if NVRTC is not installed, does not know the target, or rejects the
/// sources.
pub fn compile_kernels(target: &str) -> Result<CompiledKernels, CudaError> {
    require_compiler()?;
    let failed = |error: NvrtcError| CudaError::Compilation {
        target: target.to_owned(),
        message: format!("{:?}", error.0),
    };
    let invalid = |_| CudaError::Compilation {
        target: target.to_owned(),
        message: "the text contains a zero byte".to_owned(),
    };
    let source = CString::new(SOURCE).map_err(invalid)?;
    // No contraction, IEEE division, no flush to zero: the arithmetic demands
    // exactly the operations that are written.
    let mut options = vec![
        format!("--gpu-architecture={target}"),
        "--std=c++17".to_owned(),
        "--fmad=false".to_owned(),
        "--ftz=false".to_owned(),
        "--prec-div=true".to_owned(),
    ];
    let machine_code = target.starts_with("sm_");
    if machine_code {
        options.push("--ptxas-options=-v".to_owned());
    }
    if target.contains('\0') {
        return Err(CudaError::Compilation {
            target: target.to_owned(),
            message: "the target contains a zero byte".to_owned(),
        });
    }
    let program = Program(result::create_program(&source, Some(c"kernels.cu")).map_err(failed)?);
    // SAFETY: the program is valid until it is dropped at the end.
    let outcome = unsafe { result::compile_program(program.0, &options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program.0) }.map_err(failed)?;
    let log = text(&log);
    if outcome.is_err() {
        return Err(CudaError::Compilation {
            target: target.to_owned(),
            message: log,
        });
    }
    let image = if machine_code {
        let mut bytes = 0;
        // SAFETY: the program is valid and `bytes` can be written to.
        unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes) }
            .result()
            .map_err(failed)?;
        let mut image = vec![0_u8; bytes];
        // SAFETY: the buffer has the size that NVRTC asked for.
        unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast::<c_char>()) }
            .result()
            .map_err(failed)?;
        image
    } else {
        // SAFETY: the program is valid.
        let ptx = unsafe { result::get_ptx(program.0) }.map_err(failed)?;
        ptx.into_iter().map(|byte| byte as u8).collect()
    };
    Ok(CompiledKernels { image, log })
}

/// The text before the final zero byte of a message of NVRTC.
fn text(message: &[c_char]) -> String {
    let bytes: Vec<u8> = message.iter().map(|&byte| byte as u8).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Returns the target for a device of a compute capability: machine code of
/// the newest architecture that NVRTC knows and the device runs, or PTX if the
/// device belongs to a later generation than NVRTC.
///
/// # Errors
/// Fails if NVRTC is not installed.
pub(crate) fn target(major: u32, minor: u32) -> Result<String, CudaError> {
    require_compiler()?;
    let failed = |error: NvrtcError| CudaError::Compilation {
        target: format!("sm_{major}{minor}"),
        message: format!("{:?}", error.0),
    };
    let mut count: c_int = 0;
    // SAFETY: `count` can be written to.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }
        .result()
        .map_err(failed)?;
    let mut known = vec![0 as c_int; usize::try_from(count).unwrap_or(0)];
    // SAFETY: the buffer has the number of elements that NVRTC asked for.
    unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }
        .result()
        .map_err(failed)?;
    Ok(choose_target(major, minor, &known))
}

/// As [`target`], with the architectures that NVRTC knows (10 * major + minor).
fn choose_target(major: u32, minor: u32, known: &[c_int]) -> String {
    let device = (major * 10 + minor) as c_int;
    let best = known.iter().copied().filter(|&known| known <= device).max();
    match best {
        // Machine code runs on later minor numbers of the same major number.
        Some(best) if best / 10 == major as c_int => format!("sm_{best}"),
        Some(best) => format!("compute_{best}"),
        None => format!("sm_{device}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_machine_code_of_its_generation_or_else_ptx() {
        let known = [75, 80, 86, 89, 90, 100];
        assert_eq!(choose_target(9, 0, &known), "sm_90");
        assert_eq!(choose_target(8, 7, &known), "sm_86");
        assert_eq!(choose_target(10, 3, &known), "sm_100");
        assert_eq!(choose_target(12, 0, &known), "compute_100");
        assert_eq!(choose_target(7, 0, &known), "sm_70");
    }

    #[test]
    fn compiling_without_nvrtc_is_an_error_and_not_a_panic() {
        match compile_kernels("sm_80") {
            Ok(kernels) => assert!(!kernels.image().is_empty()),
            Err(error) => assert!(matches!(error, CudaError::LibraryMissing { .. }), "{error}"),
        }
    }
}
