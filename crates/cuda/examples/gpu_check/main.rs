//! Checks the decode step on a GPU against the scalar reference, and scores
//! against the CPU, bit for bit, and measures the speed of both. Prints one
//! table.
//!
//! ```text
//! gpu_check [--device N] [--only exact|speed|loss] [--short|--tiny]
//! ```
//!
//! `--short` runs a few small checks, for use under compute-sanitizer; `--tiny` checks
//! small networks, on a stand-in for a device (`tests/gpu_check.rs`). `loss`
//! makes the device fail on purpose and checks that this is reported; it comes
//! last, because the process cannot use the device afterwards.
//!
//! Needs libcuda, and libnvrtc in LD_LIBRARY_PATH. Ends with an error if a
//! check fails.

mod exact;
mod random;
mod scores;
mod speed;

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use charlstm_cuda::{
    CudaBatch, CudaDevice, CudaError, CudaFloatNetwork, CudaNetwork, CudaScorer, devices,
};
use charlstm_int8::{Shape, State};
use charlstm_model::architecture::Architecture;

use self::exact::exactness;
use self::random::{Numbers, random_network, random_parameters};
use self::scores::{score_speed, scores};
use self::speed::speed;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// What is checked.
pub(crate) struct Options {
    pub(crate) device: usize,
    /// One part only.
    pub(crate) only: Option<String>,
    pub(crate) size: Size,
}

/// How much is checked.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Size {
    Full,
    Short,
    Tiny,
}

fn options() -> Outcome<Options> {
    let mut options = Options {
        device: 0,
        only: None,
        size: Size::Full,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--device" => options.device = value()?.parse()?,
            "--only" => options.only = Some(value()?),
            "--short" => options.size = Size::Short,
            "--tiny" => options.size = Size::Tiny,
            _ => return Err(format!("unknown argument {argument:?}").into()),
        }
    }
    Ok(options)
}

/// Writes lines as they come, and counts failed checks.
struct Report {
    started: Instant,
    failed: usize,
    checks: usize,
}

impl Report {
    fn line(&self, line: &str) -> Outcome {
        let mut out = std::io::stdout().lock();
        writeln!(out, "[{:6.1}] {line}", self.started.elapsed().as_secs_f64())?;
        out.flush()?;
        Ok(())
    }

    fn check(&mut self, what: &str, outcome: Result<String, Box<dyn Error>>) -> Outcome {
        self.checks += 1;
        match outcome {
            Ok(detail) => self.line(&format!("ok    {what:<58} {detail}")),
            Err(error) => {
                self.failed += 1;
                self.line(&format!("FAIL  {what:<58} {error}"))
            }
        }
    }
}

/// Makes a kernel trap, which destroys the device's context, and checks that
/// every call then reports the loss.
fn loss(device: &CudaDevice, report: &mut Report) -> Outcome {
    let shape = Shape::new(78, 64, 1)?;
    let network = random_network(&mut Numbers(1), &shape);
    let network = Arc::new(CudaNetwork::upload(device, &network)?);
    let mut batch = CudaBatch::new(network.clone(), 4)?;
    let slot = batch.push(&State::zeros(&shape))?;
    batch.step(&[(slot, 1)])?;
    let architecture = Architecture {
        vocabulary_size: 78,
        hidden_size: 64,
        num_layers: 1,
    };
    let parameters = random_parameters(&mut Numbers(2), architecture);
    let floats = Arc::new(CudaFloatNetwork::upload(device, &parameters)?);
    let mut scorer = CudaScorer::new(floats.clone())?;
    let mut state = vec![0.0; architecture.state_len()];
    let mut logits = Vec::new();
    scorer.feed(&mut state, &[1, 2], &mut logits)?;
    let before = (state.clone(), logits.clone());

    let context = cudarc::driver::CudaContext::new(device.info().ordinal)?;
    let module = context.load_module(cudarc::nvrtc::Ptx::from_src(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry fail() { trap; }\n",
    ))?;
    let function = module.load_function("fail")?;
    let stream = context.new_stream()?;
    // SAFETY: the kernel has no parameters and touches no memory.
    unsafe {
        stream
            .launch_builder(&function)
            .launch(cudarc::driver::LaunchConfig {
                grid_dim: (1, 1, 1),
                block_dim: (1, 1, 1),
                shared_mem_bytes: 0,
            })
    }?;
    let failed = stream.synchronize();
    let is_loss =
        |outcome: Result<(), CudaError>| outcome.err().is_some_and(|error| error.is_device_lost());
    let step = batch.step(&[(slot, 1)]).map(|_| ());
    let message = step.as_ref().err().map(ToString::to_string);
    let seen = [
        ("trap", failed.is_err()),
        ("step", is_loss(step)),
        ("prefill", is_loss(batch.prefill(&[(slot, &[1, 2])]))),
        (
            "push",
            is_loss(batch.push(&State::zeros(&shape)).map(|_| ())),
        ),
        ("read", is_loss(batch.read(slot).map(|_| ()))),
        ("new batch", is_loss(CudaBatch::new(network, 4).map(|_| ()))),
        (
            "score",
            is_loss(scorer.feed(&mut state, &[1, 2], &mut logits)),
        ),
        ("unchanged score", (state, logits) == before),
        ("new scorer", is_loss(CudaScorer::new(floats).map(|_| ()))),
    ];
    let missing: Vec<&str> = seen
        .iter()
        .filter(|(_, seen)| !seen)
        .map(|&(name, _)| name)
        .collect();
    let outcome = if missing.is_empty() {
        Ok(message.unwrap_or_default())
    } else {
        Err(format!("not reported by {missing:?}").into())
    };
    report.check("a trapped kernel is reported by every call", outcome)
}

fn main() -> Outcome {
    run(&options()?)
}

/// Checks and prints one line for each check.
pub(crate) fn run(options: &Options) -> Outcome {
    let mut report = Report {
        started: Instant::now(),
        failed: 0,
        checks: 0,
    };
    for info in devices()? {
        let (major, minor) = info.compute_capability;
        report.line(&format!(
            "device {}: {}, {:.1} GiB, compute capability {major}.{minor}, {} multiprocessors",
            info.ordinal,
            info.name,
            info.memory_bytes as f64 / (1u64 << 30) as f64,
            info.multiprocessors
        ))?;
    }
    let start = Instant::now();
    let device = CudaDevice::open(options.device)?;
    report.line(&format!(
        "opened {}, kernels compiled and loaded in {:.1} s, {:.1} GiB free",
        device.info().name,
        start.elapsed().as_secs_f64(),
        device.free_bytes()? as f64 / (1u64 << 30) as f64
    ))?;
    let part = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    if part("exact") {
        exactness(&device, &mut report, options.size)?;
        scores(&device, &mut report, options.size)?;
    }
    if part("speed") && options.size == Size::Full {
        speed(&device, &mut report)?;
        score_speed(&device, &mut report)?;
    }
    if part("loss") && options.size == Size::Full {
        loss(&device, &mut report)?;
    }
    report.line(&format!(
        "{} checks, {} failed",
        report.checks, report.failed
    ))?;
    if report.failed > 0 {
        return Err(format!("{} checks failed", report.failed).into());
    }
    Ok(())
}
