//! Compiles the part of this crate that is C++, and sets the link flags of libtorch,
//! for the tests of this crate.

#[path = "../../server/build.rs"]
mod link;

fn main() {
    const SHIM: &str = "src/cuda_graph/shim.cpp";
    println!("cargo:rerun-if-changed={SHIM}");
    println!("cargo:rerun-if-changed=../../server/build.rs");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file(SHIM)
        .compile("charlstm_cuda_graph");
    link::main();
}
