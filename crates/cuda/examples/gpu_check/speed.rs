//! Measures the speed of the device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use charlstm_cuda::{BatchOptions, CudaBatch, CudaDevice, CudaNetwork, Slot};
use charlstm_int8::{Shape, State};

use super::random::{Numbers, random_network, random_state};
use super::{Outcome, Report};

fn median(times: &mut [Duration], part: f64) -> f64 {
    times.sort();
    let place = ((times.len() - 1) as f64 * part) as usize;
    times[place].as_secs_f64() * 1e6
}

/// Median and 99th percentile of the time of one call, in microseconds.
pub(crate) fn measure(repeat: usize, mut call: impl FnMut() -> Outcome) -> Outcome<(f64, f64)> {
    for _ in 0..repeat / 10 + 3 {
        call()?;
    }
    let mut times = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed());
    }
    Ok((median(&mut times, 0.5), median(&mut times, 0.99)))
}

/// Times of one step, in microseconds.
struct StepTimes {
    /// With the host waiting for the logits.
    median: f64,
    p99: f64,
    /// Of the device alone.
    device: f64,
    /// With the host waiting for the highest logits.
    top: f64,
}

fn measure_step(
    network: &Arc<CudaNetwork>,
    rows: usize,
    options: BatchOptions,
) -> Outcome<StepTimes> {
    let mut numbers = Numbers(5);
    let vocabulary = network.shape().vocabulary_size();
    let mut batch = CudaBatch::with_options(network.clone(), rows, options)?;
    let inputs = (0..rows)
        .map(|_| {
            let slot = batch.push(&random_state(&mut numbers, network.shape()))?;
            Ok((slot, numbers.below(vocabulary) as u32))
        })
        .collect::<Outcome<Vec<_>>>()?;
    let repeat = if rows > 1000 { 200 } else { 500 };
    let (median, p99) = measure(repeat, || {
        batch.step(&inputs)?;
        Ok(())
    })?;
    let (top, _) = measure(repeat, || {
        batch.step_top(&inputs)?;
        Ok(())
    })?;
    let mut device = Vec::new();
    for _ in 0..5 {
        device.push(batch.time_steps(rows, repeat as u32 / 5)?);
    }
    Ok(StepTimes {
        median,
        p99,
        device: self::median(&mut device, 0.5),
        top,
    })
}

fn measure_prefill(
    network: &Arc<CudaNetwork>,
    rows: usize,
    characters: usize,
    options: BatchOptions,
) -> Outcome<(f64, f64)> {
    let mut numbers = Numbers(6);
    let vocabulary = network.shape().vocabulary_size();
    let mut batch = CudaBatch::with_options(network.clone(), rows, options)?;
    let tokens: Vec<Vec<u32>> = (0..rows)
        .map(|_| {
            (0..characters)
                .map(|_| numbers.below(vocabulary) as u32)
                .collect()
        })
        .collect();
    let slots = (0..rows)
        .map(|_| batch.push(&State::zeros(network.shape())))
        .collect::<Result<Vec<_>, _>>()?;
    let inputs: Vec<(Slot, &[u32])> = slots
        .iter()
        .zip(&tokens)
        .map(|(&slot, tokens)| (slot, &tokens[..]))
        .collect();
    measure(if characters > 1000 { 5 } else { 50 }, || {
        batch.prefill(&inputs)?;
        Ok(())
    })
}

/// Measures steps, prefills and transfers of states.
pub(super) fn speed(device: &CudaDevice, report: &mut Report) -> Outcome {
    let shape = Shape::new(78, 512, 2)?;
    let network = random_network(&mut Numbers(1), &shape);
    let network = Arc::new(CudaNetwork::upload(device, &network)?);
    report.line("2 x 512, vocabulary 78: one step with the host waiting for the logits")?;
    report.line(
        "  rows |  us median     p99 |  characters/s | us on the device, with other settings",
    )?;
    let settings = |overlap, direct_logits_bytes, tile_rows| BatchOptions {
        overlap,
        direct_logits_bytes,
        tile_rows,
        ..BatchOptions::default()
    };
    for rows in [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096] {
        let times = measure_step(&network, rows, BatchOptions::default())?;
        let mut line = format!(
            "{rows:>6} | {:>9.1} {:>9.1} | {:>13.0} | {:.1}",
            times.median,
            times.p99,
            rows as f64 * 1e6 / times.median,
            times.device
        );
        for (name, options) in [
            ("copied logits", settings(true, 0, (0, 0))),
            ("no overlap", settings(false, 2 << 20, (0, 0))),
        ] {
            let times = measure_step(&network, rows, options)?;
            line += &format!(
                ", {name} {:.1} ({:.1} with the host)",
                times.device, times.median
            );
        }
        line += "; tiles";
        for tile in [8, 16, 32, 64, 128] {
            if tile <= rows.max(8) && rows / tile <= 64 {
                let times = measure_step(&network, rows, settings(true, 2 << 20, (tile, 0)))?;
                line += &format!(" {tile}: {:.1}", times.device);
            }
        }
        report.line(&line)?;
    }
    for (rows, characters) in [
        (1, 64),
        (1, 5000),
        (8, 5000),
        (16, 5000),
        (64, 5000),
        (256, 1000),
        (1024, 64),
    ] {
        let (us, _) = measure_prefill(&network, rows, characters, BatchOptions::default())?;
        let waves = BatchOptions {
            whole_prefill: false,
            ..BatchOptions::default()
        };
        let (plain, _) = measure_prefill(&network, rows, characters, waves)?;
        report.line(&format!(
            "prefill {rows} x {characters}: {us:.0} us, {:.2} us a step, {:.0} characters/s (a launch per character: {:.2} us a step)",
            us / characters as f64,
            (rows * characters) as f64 * 1e6 / us,
            plain / characters as f64,
        ))?;
    }
    let mut batch = CudaBatch::new(network.clone(), 1)?;
    let slot = batch.push(&State::zeros(&shape))?;
    let mut numbers = Numbers(8);
    let text: Vec<u32> = (0..20_000).map(|_| numbers.below(78) as u32).collect();
    let (us, _) = measure(3, || {
        batch.prefill_logits(slot, &text)?;
        Ok(())
    })?;
    report.line(&format!(
        "logits after each of 20000 characters in int8: {:.1} ms, {:.0} characters/s",
        us / 1000.0,
        20_000e6 / us
    ))?;
    let mut batch = CudaBatch::new(network.clone(), 256)?;
    let state = random_state(&mut Numbers(3), &shape);
    let slots = (0..256)
        .map(|_| batch.push(&state))
        .collect::<Result<Vec<_>, _>>()?;
    let (push, _) = measure(200, || {
        batch.write(slots[0], &state)?;
        Ok(())
    })?;
    let (read, _) = measure(200, || {
        batch.read(slots[1])?;
        Ok(())
    })?;
    let (read_all, _) = measure(50, || {
        batch.read_all(&slots)?;
        Ok(())
    })?;
    report.line(&format!(
        "state: write {push:.1} us, read {read:.1} us, read 256 {read_all:.0} us; network {} bytes, batch of 256 {} bytes on the device",
        network.device_bytes(),
        batch.device_bytes()
    ))?;
    drop(batch);

    for (vocabulary, hidden, layers) in [(4002, 512, 2), (78, 1024, 3), (78, 128, 1)] {
        let shape = Shape::new(vocabulary, hidden, layers)?;
        let network = random_network(&mut Numbers(1), &shape);
        let network = Arc::new(CudaNetwork::upload(device, &network)?);
        for rows in [1, 64, 256, 1024] {
            let times = measure_step(&network, rows, BatchOptions::default())?;
            let copied = measure_step(&network, rows, settings(true, 0, (0, 0)))?;
            let direct = measure_step(&network, rows, settings(true, usize::MAX, (0, 0)))?;
            report.line(&format!(
                "{layers} x {hidden}, vocabulary {vocabulary}, {rows} rows: {:.1} us (p99 {:.1}, device {:.1}), {:.0} characters/s; top 64 {:.1}; copied logits {:.1} ({:.1}), direct {:.1} ({:.1})",
                times.median,
                times.p99,
                times.device,
                rows as f64 * 1e6 / times.median,
                times.top,
                copied.median,
                copied.device,
                direct.median,
                direct.device,
            ))?;
        }
    }
    Ok(())
}
