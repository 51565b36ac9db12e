//! Compiles `proto/**/*.proto` to Rust. This is the build script of the crate
//! `charlstm-proto` (see `build` in `proto/Cargo.toml`). It needs no `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use tonic_prost_build::{Config, FileDescriptorSet};

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo runs build scripts in the folder of their package, here `proto/`.
    let root = Path::new(".");
    println!("cargo:rerun-if-changed=charlstm");
    println!("cargo:rerun-if-changed=../build.rs");

    let files = proto_files(&root.join("charlstm/v1"))?;
    let descriptors: FileDescriptorSet = protox::compile(&files, [root])?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;

    let mut config = Config::new();
    // Use `Bytes` for `bytes` fields: corpora and models arrive in large chunks,
    // which are shared instead of copied.
    config.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn proto_files(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(path);
        }
    }
    // `read_dir` has no defined order, and the build must be reproducible.
    files.sort();
    Ok(files)
}
