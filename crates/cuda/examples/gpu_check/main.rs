//! Checks the decode step on a GPU against the scalar reference, bit for bit,
//! and measures its speed. Prints one table.
//!
//! ```text
//! gpu_check [--device N] [--only exact|speed|loss] [--short]
//! ```
//!
//! `--short` runs a few small checks, for use under compute-sanitizer. `loss`
//! makes the device fail on purpose and checks that this is reported; it comes
//! last, because the process cannot use the device afterwards.
//!
//! Needs libcuda, and libnvrtc in LD_LIBRARY_PATH. Ends with an error if a
//! check fails.

mod random;

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use charlstm_cuda::{BatchOptions, CudaBatch, CudaDevice, CudaError, CudaNetwork, Slot, devices};
use charlstm_int8::{QuantisedNetwork, Shape, State, logsumexp, reference};

use random::{Numbers, random_network, random_state};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

struct Options {
    device: usize,
    only: Option<String>,
    short: bool,
}

fn options() -> Outcome<Options> {
    let mut options = Options {
        device: 0,
        only: None,
        short: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--device" => options.device = value()?.parse()?,
            "--only" => options.only = Some(value()?),
            "--short" => options.short = true,
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

/// Sequences with known token ids, and what the reference makes of them.
struct Expected {
    begin: Vec<State>,
    tokens: Vec<Vec<u32>>,
    /// Bits of the logits, `[rows][steps * vocabulary]`.
    logits: Vec<Vec<u32>>,
    end: Vec<State>,
}

/// Computes the reference on all cores.
fn expected(network: &QuantisedNetwork, seed: u64, rows: usize, steps: usize) -> Expected {
    let shape = network.shape();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut numbers = Numbers(seed);
    let begin: Vec<State> = (0..rows)
        .map(|row| match row {
            1 => State::zeros(shape),
            _ => random_state(&mut numbers, shape),
        })
        .collect();
    let tokens: Vec<Vec<u32>> = (0..rows)
        .map(|_| {
            (0..steps)
                .map(|_| numbers.below(shape.vocabulary_size()) as u32)
                .collect()
        })
        .collect();
    let run = |row: usize| {
        let mut state = begin[row].clone();
        let mut logits = Vec::with_capacity(steps * shape.vocabulary_size());
        for &token in &tokens[row] {
            reference::step(network, &mut state, token);
            logits.extend(bits(&reference::logits(network, &state)));
        }
        (logits, state)
    };
    let all: Vec<usize> = (0..rows).collect();
    let results: Vec<(Vec<u32>, State)> = std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .chunks(rows.div_ceil(cores))
            .map(|rows| scope.spawn(|| rows.iter().map(|&row| run(row)).collect::<Vec<_>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_default())
            .collect()
    });
    let (logits, end) = results.into_iter().unzip();
    Expected {
        begin,
        tokens,
        logits,
        end,
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn differing_numbers(given: &State, expected: &State) -> usize {
    let h = given.h().iter().zip(expected.h());
    let c = bits(given.c());
    let expected_c = bits(expected.c());
    h.filter(|(a, b)| a != b).count() + c.iter().zip(&expected_c).filter(|(a, b)| a != b).count()
}

fn fail_if(count: usize, what: &str) -> Outcome {
    if count == 0 {
        Ok(())
    } else {
        Err(format!("{count} {what} differ").into())
    }
}

/// Decodes the first `rows` sequences together and compares all logits and the
/// final states.
fn check_steps(
    batch: &mut CudaBatch,
    expected: &Expected,
    rows: usize,
) -> Result<String, Box<dyn Error>> {
    let vocabulary = batch.network().shape().vocabulary_size();
    let steps = expected.tokens[0].len();
    let slots = expected.begin[..rows]
        .iter()
        .map(|state| batch.push(state))
        .collect::<Result<Vec<_>, _>>()?;
    let mut differing = 0;
    for step in 0..steps {
        let inputs: Vec<(Slot, u32)> = slots
            .iter()
            .zip(&expected.tokens)
            .map(|(&slot, tokens)| (slot, tokens[step]))
            .collect();
        let logits = batch.step(&inputs)?;
        for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
            let expected = &expected.logits[row][step * vocabulary..][..vocabulary];
            differing += bits(logits)
                .iter()
                .zip(expected)
                .filter(|(a, b)| a != b)
                .count();
        }
    }
    let states = batch.read_all(&slots)?;
    let states = states.iter().zip(&expected.end);
    let differing_state: usize = states.map(|(a, b)| differing_numbers(a, b)).sum();
    for slot in slots {
        batch.remove(slot)?;
    }
    fail_if(differing, "logits")?;
    fail_if(differing_state, "numbers of states")?;
    Ok(format!(
        "{} logits, {} state numbers equal",
        rows * steps * vocabulary,
        rows * expected.end[0].h().len() * 2
    ))
}

/// Compares the logits after each character of a prefill of one sequence.
fn check_prefill_logits(
    batch: &mut CudaBatch,
    expected: &Expected,
) -> Result<String, Box<dyn Error>> {
    let mut differing = 0;
    for row in 0..2 {
        let slot = batch.push(&expected.begin[row])?;
        let logits = batch.prefill_logits(slot, &expected.tokens[row])?;
        let pairs = bits(&logits);
        differing += usize::from(logits.len() != expected.logits[row].len());
        differing += pairs
            .iter()
            .zip(&expected.logits[row])
            .filter(|(a, b)| a != b)
            .count();
        differing += differing_numbers(&batch.read(slot)?, &expected.end[row]);
        batch.remove(slot)?;
    }
    fail_if(differing, "numbers")?;
    Ok(format!("2 x {} characters", expected.tokens[0].len()))
}

/// As [`check_steps`], for the highest logits and the log-sum-exp.
fn check_top(
    batch: &mut CudaBatch,
    expected: &Expected,
    rows: usize,
) -> Result<String, Box<dyn Error>> {
    let vocabulary = batch.network().shape().vocabulary_size();
    let slots = expected.begin[..rows]
        .iter()
        .map(|state| batch.push(state))
        .collect::<Result<Vec<_>, _>>()?;
    let mut differing = 0;
    for step in 0..expected.tokens[0].len() {
        let inputs: Vec<(Slot, u32)> = slots
            .iter()
            .zip(&expected.tokens)
            .map(|(&slot, tokens)| (slot, tokens[step]))
            .collect();
        let results = batch.step_top(&inputs)?;
        for row in 0..rows {
            let logits: Vec<f32> = expected.logits[row][step * vocabulary..][..vocabulary]
                .iter()
                .map(|&bits| f32::from_bits(bits))
                .collect();
            let mut order: Vec<usize> = (0..vocabulary).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let given = results.row(row);
            differing += usize::from(given.ids.len() != vocabulary.min(64));
            for (place, &id) in given.ids.iter().enumerate() {
                differing += usize::from(id as usize != order[place]);
                let expected = logits[order[place]].to_bits();
                differing += usize::from(given.logits[place].to_bits() != expected);
            }
            let log_sum_exp = logsumexp::log_sum_exp(&logits);
            differing += usize::from(given.log_sum_exp.to_bits() != log_sum_exp.to_bits());
        }
    }
    for slot in slots {
        batch.remove(slot)?;
    }
    fail_if(differing, "results")?;
    Ok(format!(
        "{} log-sum-exps equal",
        rows * expected.tokens[0].len()
    ))
}

/// Feeds the first `rows` sequences with prefills, cut at `cuts`, and compares
/// the final states. Some rows have fewer characters.
fn check_prefill(
    batch: &mut CudaBatch,
    network: &QuantisedNetwork,
    expected: &Expected,
    rows: usize,
    cuts: &[usize],
) -> Result<String, Box<dyn Error>> {
    let steps = expected.tokens[0].len();
    let slots = expected.begin[..rows]
        .iter()
        .map(|state| batch.push(state))
        .collect::<Result<Vec<_>, _>>()?;
    let lengths: Vec<usize> = (0..rows).map(|row| steps - row % steps.min(7)).collect();
    let mut from = 0;
    for to in cuts.iter().copied().chain([steps]) {
        let inputs: Vec<(Slot, &[u32])> = slots
            .iter()
            .zip(&expected.tokens)
            .zip(&lengths)
            .map(|((&slot, tokens), &length)| (slot, &tokens[from.min(length)..to.min(length)]))
            .collect();
        batch.prefill(&inputs)?;
        from = to;
    }
    let states = batch.read_all(&slots)?;
    let mut differing = 0;
    for (row, state) in states.iter().enumerate() {
        if lengths[row] == steps {
            differing += differing_numbers(state, &expected.end[row]);
        } else if row < 21 {
            let mut expected_state = expected.begin[row].clone();
            for &token in &expected.tokens[row][..lengths[row]] {
                reference::step(network, &mut expected_state, token);
            }
            differing += differing_numbers(state, &expected_state);
        }
    }
    for slot in slots {
        batch.remove(slot)?;
    }
    fail_if(differing, "numbers of states")?;
    Ok(format!("{steps} characters, cut at {cuts:?}"))
}

/// A sequence decoded alone, among others that come and go, in two batches with
/// its state moved through the host, and partly by the reference.
fn check_invariance(
    network: &Arc<CudaNetwork>,
    weights: &QuantisedNetwork,
    expected: &Expected,
) -> Result<String, Box<dyn Error>> {
    let vocabulary = network.shape().vocabulary_size();
    let mut batch = CudaBatch::new(network.clone(), 300)?;
    let mut other = CudaBatch::new(network.clone(), 8)?;
    let mut numbers = Numbers(99);
    let steps = expected.tokens[0].len();
    let mut slot = batch.push(&expected.begin[0])?;
    let mut companions: Vec<Slot> = Vec::new();
    let mut differing = 0;
    for step in 0..steps {
        let token = expected.tokens[0][step];
        match step % 5 {
            0 => {
                for _ in 0..numbers.below(120) {
                    if companions.len() < 290 {
                        companions.push(batch.push(&random_state(&mut numbers, network.shape()))?);
                    }
                }
            }
            1 => {
                for _ in 0..numbers.below(100) {
                    if !companions.is_empty() {
                        let place = numbers.below(companions.len());
                        batch.remove(companions.swap_remove(place))?;
                    }
                }
            }
            2 => {
                let state = batch.read(slot)?;
                batch.remove(slot)?;
                let elsewhere = other.push(&state)?;
                let logits = bits(other.step(&[(elsewhere, token)])?);
                let expected = &expected.logits[0][step * vocabulary..][..vocabulary];
                differing += logits.iter().zip(expected).filter(|(a, b)| a != b).count();
                slot = batch.push(&other.read(elsewhere)?)?;
                other.remove(elsewhere)?;
                continue;
            }
            3 => {
                let mut state = batch.read(slot)?;
                reference::step(weights, &mut state, token);
                batch.write(slot, &state)?;
                continue;
            }
            _ => {}
        }
        let place = numbers.below(companions.len() + 1);
        let mut inputs: Vec<(Slot, u32)> = companions
            .iter()
            .filter(|_| numbers.below(3) > 0)
            .map(|&slot| (slot, 0))
            .collect();
        let place = place.min(inputs.len());
        inputs.insert(place, (slot, token));
        let logits = bits(batch.step(&inputs)?);
        let expected = &expected.logits[0][step * vocabulary..][..vocabulary];
        differing += logits[place * vocabulary..][..vocabulary]
            .iter()
            .zip(expected)
            .filter(|(a, b)| a != b)
            .count();
    }
    differing += differing_numbers(&batch.read(slot)?, &expected.end[0]);
    fail_if(differing, "numbers")?;
    Ok(format!("{steps} characters"))
}

fn check_errors(network: &Arc<CudaNetwork>) -> Result<String, Box<dyn Error>> {
    let mut batch = CudaBatch::new(network.clone(), 2)?;
    let state = State::zeros(network.shape());
    let (a, b) = (batch.push(&state)?, batch.push(&state)?);
    let vocabulary = network.shape().vocabulary_size() as u32;
    let seen = [
        matches!(batch.push(&state), Err(CudaError::BatchFull { .. })),
        matches!(
            batch.step(&[(a, 0), (a, 0)]),
            Err(CudaError::DuplicateSlot { .. })
        ),
        matches!(
            batch.step(&[(b, vocabulary)]),
            Err(CudaError::InvalidToken { .. })
        ),
        batch.remove(a).is_ok(),
        matches!(batch.step(&[(a, 0)]), Err(CudaError::StaleSlot { .. })),
        batch.step(&[(b, 0)]).is_ok(),
        matches!(
            CudaBatch::new(network.clone(), 0),
            Err(CudaError::Capacity { .. })
        ),
    ];
    match seen.iter().position(|&seen| !seen) {
        None => Ok(String::new()),
        Some(place) => Err(format!("case {place} did not give its error").into()),
    }
}

fn exactness(device: &CudaDevice, report: &mut Report, short: bool) -> Outcome {
    let shapes: &[(usize, usize, usize, &[usize], usize)] = if short {
        &[(78, 512, 2, &[5, 40], 2), (130, 100, 3, &[9, 200], 2)]
    } else {
        &[
            (
                78,
                512,
                2,
                &[1, 8, 16, 31, 64, 128, 256, 300, 512, 1024, 2048, 4096],
                6,
            ),
            (1, 64, 1, &[1, 20, 130], 5),
            (78, 64, 3, &[7, 64, 600], 5),
            (130, 100, 3, &[1, 33, 260], 5),
            (78, 1024, 3, &[2, 100, 256], 3),
            (4002, 512, 2, &[1, 64, 256], 3),
            (4002, 64, 1, &[3, 500], 3),
            (97, 1088, 1, &[5, 40], 3),
        ]
    };
    for (seed, &(vocabulary, hidden, layers, row_counts, steps)) in shapes.iter().enumerate() {
        let shape = Shape::new(vocabulary, hidden, layers)?;
        let network = random_network(&mut Numbers(seed as u64 + 1), &shape);
        let most = row_counts.iter().copied().max().unwrap_or(1);
        let expected = expected(&network, seed as u64 + 50, most, steps);
        let on_device = Arc::new(CudaNetwork::upload(device, &network)?);
        let mut batch = CudaBatch::new(on_device.clone(), most)?;
        let name = format!("{layers} x {hidden}, vocabulary {vocabulary}");
        for &rows in row_counts {
            let outcome = check_steps(&mut batch, &expected, rows);
            report.check(&format!("step     {name}, {rows} rows"), outcome)?;
        }
        for rows in [most.min(5), most.min(20), most.min(300)] {
            let outcome = check_prefill(&mut batch, &network, &expected, rows, &[1]);
            report.check(&format!("prefill  {name}, {rows} rows"), outcome)?;
        }
        let rows = most.min(256);
        let outcome = check_top(&mut batch, &expected, rows);
        report.check(&format!("top 64   {name}, {rows} rows"), outcome)?;
        if seed == 0 {
            let rows = if short { 40 } else { 300 };
            for tile in [8, 16, 32, 64, 128] {
                for (overlap, direct) in [(true, 0), (false, usize::MAX)] {
                    let options = BatchOptions {
                        overlap,
                        direct_logits_bytes: direct,
                        tile_rows: (tile, tile),
                        ..BatchOptions::default()
                    };
                    let mut batch = CudaBatch::with_options(on_device.clone(), rows, options)?;
                    let outcome = check_steps(&mut batch, &expected, rows);
                    let what = format!(
                        "step     {rows} rows, tiles of {tile}, overlap {overlap}, direct {}",
                        direct > 0
                    );
                    report.check(&what, outcome)?;
                }
            }
        }
    }

    let shape = Shape::new(78, 512, 2)?;
    let network = random_network(&mut Numbers(1), &shape);
    let on_device = Arc::new(CudaNetwork::upload(device, &network)?);
    let steps = if short { 8 } else { 200 };
    let few = self::expected(&network, 77, 24, steps);
    let mut batch = CudaBatch::new(on_device.clone(), 24)?;
    let outcome = check_steps(&mut batch, &few, 24);
    report.check(&format!("step     24 rows, {steps} characters"), outcome)?;
    let waves = BatchOptions {
        whole_prefill: false,
        ..BatchOptions::default()
    };
    let mut waves = CudaBatch::with_options(on_device.clone(), 24, waves)?;
    for cuts in [&[][..], &[1, 3, 100], &[64, 128]] {
        let cuts: Vec<usize> = cuts.iter().copied().filter(|&cut| cut < steps).collect();
        for rows in [1, 16, 24] {
            let outcome = check_prefill(&mut batch, &network, &few, rows, &cuts);
            report.check(&format!("prefill  {rows} rows, in parts"), outcome)?;
            let outcome = check_prefill(&mut waves, &network, &few, rows, &cuts);
            report.check(
                &format!("prefill  {rows} rows, in parts, by waves"),
                outcome,
            )?;
        }
    }
    for (name, batch) in [("", &mut batch), (", by waves", &mut waves)] {
        let outcome = check_prefill_logits(batch, &few);
        report.check(&format!("logits after each character{name}"), outcome)?;
    }
    let outcome = check_invariance(&on_device, &network, &few);
    report.check(
        "alone, among others, moved between batches and the CPU",
        outcome,
    )?;
    let outcome = check_errors(&on_device);
    report.check("invalid calls give their errors", outcome)?;
    Ok(())
}

fn median(times: &mut [Duration], part: f64) -> f64 {
    times.sort();
    let place = ((times.len() - 1) as f64 * part) as usize;
    times[place].as_secs_f64() * 1e6
}

/// Median and 99th percentile of the time of one call, in microseconds.
fn measure(repeat: usize, mut call: impl FnMut() -> Outcome) -> Outcome<(f64, f64)> {
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

fn speed(device: &CudaDevice, report: &mut Report) -> Outcome {
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
        "logits after each of 20000 characters: {:.1} ms, {:.0} characters/s",
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

/// Makes a kernel trap, which destroys the device's context, and checks that
/// every call then reports the loss.
fn loss(device: &CudaDevice, report: &mut Report) -> Outcome {
    let shape = Shape::new(78, 64, 1)?;
    let network = random_network(&mut Numbers(1), &shape);
    let network = Arc::new(CudaNetwork::upload(device, &network)?);
    let mut batch = CudaBatch::new(network.clone(), 4)?;
    let slot = batch.push(&State::zeros(&shape))?;
    batch.step(&[(slot, 1)])?;

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
    let options = options()?;
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
        exactness(&device, &mut report, options.short)?;
    }
    if part("speed") && !options.short {
        speed(&device, &mut report)?;
    }
    if part("loss") && !options.short {
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
