//! Link flags of libtorch for the programs, tests and benchmarks of this
//! crate: where the libraries are at run time, and CUDA where this libtorch
//! has it. The flags that `torch-sys` gives are not passed on to the binaries
//! of a dependent. Fetching libtorch is not here: `scripts/libtorch.py` does it.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // From torch-sys, `links = "tch"`: the folder that it links with.
    let Some(folder) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        return;
    };
    // `.libtorch/cuda` is a link into a virtual environment; the libraries
    // find their neighbours relative to where they really lie.
    let folder = fs::canonicalize(&folder).unwrap_or(folder);
    let shown = folder.display();
    // So the programs start from any folder, with nothing exported.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{shown}");
    if Path::new(&folder).join("libtorch_cuda.so").exists() {
        link_cuda(&folder);
    }
}

/// Links libtorch_cuda although nothing in our code names one of its symbols:
/// it registers itself when it is loaded. Without the flags the linker drops
/// it, and the program sees no GPU.
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
