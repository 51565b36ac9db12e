//! Compiles `proto/**/*.proto` to Rust for the crate `charlstm-proto`, which
//! names this file as its build script. No `protoc` is needed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use tonic_prost_build::{Config, FileDescriptorSet};

fn main() -> Result<(), Box<dyn Error>> {
    // A build script runs in the folder of its package, `proto/`.
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
    // Corpora and models come in large chunks: share their bytes, do not copy.
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
    // The order of a folder is the file system's; the build must not depend on it.
    files.sort();
    Ok(files)
}
