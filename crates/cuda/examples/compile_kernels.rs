//! Compiles every kernel with NVRTC for the architectures that are named, and
//! prints the registers of each kernel and the bytes that it spills. Needs
//! libnvrtc and no GPU.
//!
//! ```text
//! LD_LIBRARY_PATH=$(scripts/nvrtc.py) cargo run -p charlstm-cuda --example compile_kernels -- sm_80 sm_90a sm_100
//! ```

use std::io::Write;
use std::time::Instant;

use charlstm_cuda::compile_kernels;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    let targets: Vec<String> = std::env::args().skip(1).collect();
    if targets.is_empty() {
        return Err("name at least one architecture, for example sm_80".into());
    }
    for target in targets {
        let start = Instant::now();
        let kernels = compile_kernels(&target)?;
        writeln!(
            out,
            "{target}: {} bytes, compiled in {:.1} s",
            kernels.image().len(),
            start.elapsed().as_secs_f64()
        )?;
        let mut name = "";
        let mut spilled = "";
        for line in kernels.log().lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                name = rest.split('\'').next().unwrap_or(rest);
            } else if line.contains("spill stores") {
                spilled = line.split_once(", ").map_or(line, |(_, rest)| rest);
            } else if let Some((_, rest)) = line.split_once("Used ") {
                let registers = rest.split(',').next().unwrap_or(rest);
                writeln!(out, "  {name:<12} {registers:<14} {spilled}")?;
            } else if line.contains("warning") {
                return Err(format!("{target}: {line}").into());
            }
        }
    }
    Ok(())
}
