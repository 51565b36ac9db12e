//! The kernel sources as a shared library for the CPU.

use std::ffi::{CString, c_char, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::compiler::compiler;
use crate::launch::{Kernel, Launch, TILES};

/// The kernel sources, compiled for the CPU.
pub(super) struct HostKernels(libloading::Library);

pub(super) type Map = unsafe extern "C" fn(*const f32, *mut f32, usize);
pub(super) type Cell = unsafe extern "C" fn(*const f32, *mut f32, *mut i8, usize);
pub(super) type Scaled = unsafe extern "C" fn(*const i32, *const f32, *const f32, *mut f32, usize);
pub(super) type DoubleMap = unsafe extern "C" fn(*const f64, *mut f64, usize);
pub(super) type Bytes = unsafe extern "C" fn() -> c_uint;
pub(super) type Schedule = unsafe extern "C" fn(c_uint);
pub(super) type LaunchFunction = unsafe extern "C" fn(
    *const c_char,
    *const c_void,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
) -> bool;

/// The kernels, for one test at a time, because the emulation has global state.
pub(super) type Locked = MutexGuard<'static, Option<HostKernels>>;

/// Compiles the sources once per test process. `None` if there is no compiler,
/// which fails the tests if CHARLSTM_REQUIRE_ALL is set.
pub(super) fn host_kernels() -> Option<Locked> {
    static KERNELS: Mutex<Option<HostKernels>> = Mutex::new(None);
    let mut kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    if kernels.is_none() {
        *kernels = compile_for_host();
    }
    kernels.is_some().then_some(kernels)
}

pub(super) fn compile_for_host() -> Option<HostKernels> {
    let compiler = compiler()?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = folder.path().join("kernels_on_host.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/kernels_on_host.cpp");
    let output = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wno-unknown-pragmas",
        ])
        .args(["-ffp-contract=off", "-fPIC", "-shared", "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .expect("the compiler runs");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    // SAFETY: the library has no initialisers with preconditions.
    let library = unsafe { libloading::Library::new(&library) };
    Some(HostKernels(library.expect("the library loads")))
}

impl HostKernels {
    pub(super) fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the types above are those of kernels_on_host.cpp.
        *unsafe { self.0.get::<F>(name.as_bytes()) }.expect("the function exists")
    }

    pub(super) fn map(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        // SAFETY: both have the length given.
        unsafe { self.function::<Map>(name)(x.as_ptr(), y.as_mut_ptr(), x.len()) };
        y
    }

    /// Runs one launch to its end.
    pub(super) fn run(&self, launch: &Launch) {
        let name = match launch.kernel {
            Kernel::Layer { tile, .. } => format!("layer_{}", TILES[tile].rows),
            Kernel::Output { tile, .. } => format!("output_{}", TILES[tile].rows),
            Kernel::Prefill { division, .. } => format!("prefill_{}", 8 * division.groups),
            Kernel::Top(_) => "top_logits".to_owned(),
            Kernel::CopyStates(_) => "copy_states".to_owned(),
            Kernel::ScoreWave(_) => "score_wave".to_owned(),
            Kernel::ScoreLogits(_) => "score_logits".to_owned(),
        };
        let name = CString::new(name).expect("a name");
        let [x, y, z] = launch.grid;
        // SAFETY: the arguments are of the kernel's type, and point to memory
        // of the sizes that the launch is for.
        let known = unsafe {
            self.function::<LaunchFunction>("host_launch")(
                name.as_ptr(),
                launch.arguments(),
                x,
                y,
                z,
                launch.threads() as c_uint,
                launch.shared_bytes() as c_uint,
            )
        };
        assert!(known, "there is no kernel {name:?}");
    }
}
