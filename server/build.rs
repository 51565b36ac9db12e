//! Link flags of libtorch for the programs and tests of this crate: where the
//! libraries are at run time, and CUDA where this libtorch has it. The flags
//! that `torch-sys` gives are not passed on to a dependent's binaries.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(folder) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    // Nothing in our code names a symbol of libtorch_cuda: without this the
    // linker drops it, and the program sees no GPU.
    if Path::new(&folder).join("libtorch_cuda.so").exists() {
        for flag in [
            "-Wl,--no-as-needed",
            "-ltorch_cuda",
            "-ltorch",
            "-Wl,--as-needed",
        ] {
            println!("cargo:rustc-link-arg={flag}");
        }
        println!("cargo:rustc-link-search=native={folder}");
    }
}
