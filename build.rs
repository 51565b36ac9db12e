//! Compiles `proto/**/*.proto` to Rust. This is the build script of the crate
//! `charlstm-proto` (see `build` in `proto/Cargo.toml`). It needs no `protoc`.

use std::error::Error;
use std::fmt::Write;
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
    fs::write(out.join("methods.rs"), method_table(&descriptors)?)?;

    let mut config = Config::new();
    // Use `Bytes` for `bytes` fields: corpora and models arrive in large chunks,
    // which are shared instead of copied.
    config.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// Writes the value of `charlstm_proto::METHODS` as a Rust expression.
fn method_table(descriptors: &FileDescriptorSet) -> Result<String, std::fmt::Error> {
    let mut table = String::from("&[\n");
    for file in &descriptors.file {
        for service in &file.service {
            let service_name = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                writeln!(
                    table,
                    "Method {{ path: {:?}, service: {:?}, name: {:?}, \
                     client_streaming: {}, server_streaming: {} }},",
                    format!("/{service_name}/{}", method.name()),
                    service_name,
                    method.name(),
                    method.client_streaming(),
                    method.server_streaming(),
                )?;
            }
        }
    }
    table.push(']');
    Ok(table)
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
