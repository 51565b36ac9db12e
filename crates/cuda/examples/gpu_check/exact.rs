//! Compares the decode step of the device with the scalar reference, bit for
//! bit.

use std::error::Error;
use std::sync::Arc;

use charlstm_cuda::{BatchOptions, CudaBatch, CudaDevice, CudaError, CudaNetwork, Slot};
use charlstm_int8::{QuantisedNetwork, Shape, State, logsumexp, reference};

use super::random::{Numbers, random_network, random_state};
use super::{Outcome, Report, Size};

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

/// Checks all steps and prefills of several networks.
pub(super) fn exactness(device: &CudaDevice, report: &mut Report, size: Size) -> Outcome {
    let shapes: &[(usize, usize, usize, &[usize], usize)] = match size {
        Size::Tiny => &[(78, 64, 2, &[1, 20], 3), (530, 40, 1, &[9], 2)],
        Size::Short => &[(78, 512, 2, &[5, 40], 2), (130, 100, 3, &[9, 200], 2)],
        Size::Full => &[
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
        ],
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
            let rows = match size {
                Size::Tiny => 20,
                Size::Short => 40,
                Size::Full => 300,
            };
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

    let (hidden, steps) = match size {
        Size::Tiny => (64, 8),
        Size::Short => (512, 8),
        Size::Full => (512, 200),
    };
    let shape = Shape::new(78, hidden, 2)?;
    let network = random_network(&mut Numbers(1), &shape);
    let on_device = Arc::new(CudaNetwork::upload(device, &network)?);
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
