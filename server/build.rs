//! Sets the linker flags for libtorch in the programs, tests and benchmarks of
//! this crate: the rpath, and CUDA if this libtorch supports it. Cargo does not
//! pass the flags of `torch-sys` on to the binaries of dependent crates.
//! `scripts/libtorch.py` fetches libtorch.

use std::path::{Path, PathBuf};
use std::{env, fs};

pub(crate) fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Set by torch-sys (`links = "tch"`): the folder of the libraries.
    let Some(folder) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        return;
    };
    // `.libtorch/cuda` is a symbolic link into a virtual environment; the
    // libraries find each other relative to their real path.
    let folder = fs::canonicalize(&folder).unwrap_or(folder);
    let shown = folder.display();
    // An installed program has the libraries next to it (scripts/package.py).
    let origin = match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => "@loader_path",
        _ => "$ORIGIN",
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{origin}/../lib/charlstm");
    // With the rpath, the programs start in any folder without LD_LIBRARY_PATH.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{shown}");
    if Path::new(&folder).join("libtorch_cuda.so").exists() {
        link_cuda(&folder);
    }
}

/// Links libtorch_cuda, although no code refers to its symbols: it registers
/// itself when it is loaded. Without these flags the linker drops the library,
/// and the program does not find a GPU.
fn link_cuda(folder: &Path) {
    println!("cargo:rustc-link-arg=-L{}", folder.display());
    for flag in [
        "-Wl,--no-as-needed",
        "-ltorch_cuda",
        "-ltorch",
        "-Wl,--as-needed",
    ] {
        println!("cargo:rustc-link-arg={flag}");
    }
}
