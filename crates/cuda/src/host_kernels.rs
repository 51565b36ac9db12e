//! Tests that run the kernel sources on the CPU, compiled as C++ with a header
//! that stands in for the device (`tests/host/emulation.h`), and compare every
//! result with the scalar reference, bit for bit. Weights, tables and launches
//! are made by the same functions as on a device.

use std::ffi::c_uint;

use charlstm_int8::{QuantisedNetwork, Shape, State, activation, logsumexp, reference};

mod batch;
#[path = "../tests/host/compiler.rs"]
mod compiler;
mod library;
#[path = "../examples/gpu_check/random.rs"]
mod random;
mod score;

use batch::{HostBatch, Prefill, aligned_copy};
use library::{Bytes, Cell, DoubleMap, HostKernels, Scaled, Schedule, host_kernels};
use random::{Numbers, random_network, random_state};

use crate::error::CudaError;
use crate::launch::{
    self, BatchAddresses, Exchange, Kernel, Launch, MAX_WHOLE_CHUNK, NetworkAddresses, OutputRows,
    PrefillDivision, TABLE_HEADER, TILES, TOP, TileChoice, TopArguments, table_entry, table_words,
};
use crate::network::place_network;
use crate::state_layout::StateLayout;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
fn assert_same_state(given: &State, expected: &State, what: &str) {
    assert_eq!(given.h(), expected.h(), "h of {what}");
    assert_eq!(bits(given.c()), bits(expected.c()), "c of {what}");
}

#[test]
fn the_arithmetic_of_the_kernels_is_the_references_bit_for_bit() {
    let Some(kernels) = host_kernels() else {
        return;
    };
    let Some(kernels) = &*kernels else { return };
    let mut numbers = Numbers(1);
    let mut x = vec![0.0, -0.0, 1e-45, -1e-45, 7.905_311, 7.905_312, 1e6, -3.0e38];
    // Every exponent, with random mantissas and signs.
    for exponent in 0..255_u32 {
        for _ in 0..64 {
            let random = numbers.next() as u32;
            x.push(f32::from_bits(random & 0x807F_FFFF | exponent << 23));
        }
    }
    x.extend(numbers.floats(100_000, 9.0));
    let tanh: Vec<f32> = x.iter().map(|&x| activation::tanh(x)).collect();
    let sigmoid: Vec<f32> = x.iter().map(|&x| activation::sigmoid(x)).collect();
    assert_eq!(bits(&kernels.map("host_tanh", &x)), bits(&tanh));
    assert_eq!(bits(&kernels.map("host_sigmoid", &x)), bits(&sigmoid));

    let count = 100_000;
    let gates = numbers.floats(count * 4, 12.0);
    let before = numbers.floats(count, 3.0);
    let (mut c, mut h) = (before.clone(), vec![0_i8; count]);
    // SAFETY: the arrays have these lengths.
    unsafe {
        kernels.function::<Cell>("host_cell")(
            gates.as_ptr(),
            c.as_mut_ptr(),
            h.as_mut_ptr(),
            count,
        );
    }
    for i in 0..count {
        let gates = [
            gates[4 * i],
            gates[4 * i + 1],
            gates[4 * i + 2],
            gates[4 * i + 3],
        ];
        let (expected_h, expected_c) = reference::cell(gates, before[i]);
        assert_eq!(h[i], expected_h);
        assert_eq!(c[i].to_bits(), expected_c.to_bits());
    }

    // Sums beyond 2^24, where the conversion rounds.
    let sums: Vec<i32> = (0..count).map(|_| numbers.next() as i32).collect();
    let scales = numbers.floats(count, 1e-4);
    let begins = numbers.floats(count, 2.0);
    let mut scaled = vec![0.0; count];
    // SAFETY: the arrays have these lengths.
    unsafe {
        kernels.function::<Scaled>("host_scaled")(
            sums.as_ptr(),
            scales.as_ptr(),
            begins.as_ptr(),
            scaled.as_mut_ptr(),
            count,
        );
    }
    let expected: Vec<f32> = (0..count)
        .map(|i| (sums[i] as f32).mul_add(scales[i], begins[i]))
        .collect();
    assert_eq!(bits(&scaled), bits(&expected));
}

/// Decodes `rows` of more sequences with the kernels and the reference, then
/// prefills them with different lengths, and compares everything.
fn compare_with_reference(
    kernels: &HostKernels,
    seed: u64,
    shape: (usize, usize, usize),
    rows: usize,
    tile: usize,
) {
    let mut numbers = Numbers(seed);
    let (vocabulary, hidden, layers) = shape;
    let shape = Shape::new(vocabulary, hidden, layers).expect("a shape");
    let what = format!("{shape:?}, {rows} rows, tile {}", TILES[tile].rows);
    let network = random_network(&mut numbers, &shape);
    let mut states: Vec<State> = (0..rows + 3)
        .map(|_| random_state(&mut numbers, &shape))
        .collect();
    let mut batch = HostBatch::new(kernels, &network, &states);
    let tiles = TileChoice {
        layer: tile,
        output: tile,
    };
    // SAFETY: only sets a number.
    unsafe { kernels.function::<Schedule>("host_schedule")(numbers.next() as c_uint) };

    let mut slots: Vec<usize> = (0..rows + 3).collect();
    for place in (1..slots.len()).rev() {
        slots.swap(place, numbers.below(place + 1));
    }
    slots.truncate(rows);
    for _ in 0..2 {
        let inputs: Vec<(usize, u32)> = slots
            .iter()
            .map(|&slot| (slot, numbers.below(vocabulary) as u32))
            .collect();
        let logits = batch.step(&inputs, tiles);
        for (&(slot, token), logits) in inputs.iter().zip(&logits) {
            reference::step(&network, &mut states[slot], token);
            let expected = reference::logits(&network, &states[slot]);
            assert_eq!(
                bits(logits),
                bits(&expected),
                "logits of slot {slot}, {what}"
            );
        }
    }
    let mut methods = vec![Prefill::Waves(tiles)];
    // A large network has more blocks at once than are worth emulating.
    if rows <= 24 && batch.addresses.hidden <= 512 {
        let network = &batch.addresses;
        methods.extend(PrefillDivision::all(network.hidden, network.layers).map(Prefill::Whole));
    }
    for method in methods {
        let characters = 4;
        let tokens: Vec<Vec<u32>> = (0..rows)
            .map(|row| {
                let length = 1 + (row + 1) % characters;
                (0..length)
                    .map(|_| numbers.below(vocabulary) as u32)
                    .collect()
            })
            .collect();
        let prefill: Vec<(usize, &[u32])> = slots
            .iter()
            .zip(&tokens)
            .map(|(&slot, tokens)| (slot, &tokens[..]))
            .collect();
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let characters = match method {
            Prefill::Waves(_) => characters,
            Prefill::Whole(_) => longest,
        };
        let history = batch.prefill(&prefill, characters, method);
        for (row, &(slot, tokens)) in prefill.iter().enumerate() {
            let logits = if row < 3 {
                batch.history_logits(&history, row, tokens.len(), tiles)
            } else {
                Vec::new()
            };
            for (character, &token) in tokens.iter().enumerate() {
                reference::step(&network, &mut states[slot], token);
                if let Some(logits) = logits.get(character) {
                    let expected = reference::logits(&network, &states[slot]);
                    assert_eq!(
                        bits(logits),
                        bits(&expected),
                        "character {character}, {what}"
                    );
                }
            }
        }
    }
    for (slot, (given, state)) in batch.states().iter().zip(&states).enumerate() {
        assert_same_state(given, state, &format!("slot {slot}, {what}"));
    }
}

#[test]
fn every_kernel_gives_the_references_bits_for_every_number_of_rows() {
    let Some(kernels) = host_kernels() else {
        return;
    };
    let Some(kernels) = &*kernels else { return };
    for (seed, (rows, tile)) in [
        (1, 0),
        (8, 0),
        (9, 0),
        (13, 1),
        (33, 2),
        (64, 3),
        (67, 3),
        (128, 4),
        (131, 4),
    ]
    .into_iter()
    .enumerate()
    {
        compare_with_reference(kernels, seed as u64, (78, 64, 2), rows, tile);
    }
}

#[test]
fn kernels_give_the_references_bits_for_every_kind_of_shape() {
    let Some(kernels) = host_kernels() else {
        return;
    };
    let Some(kernels) = &*kernels else { return };
    for (seed, shape) in [
        (1, 1, 1),
        (5, 63, 1),
        (130, 64, 3),
        (78, 100, 2),
        (300, 65, 1),
        (2, 200, 4),
    ]
    .into_iter()
    .enumerate()
    {
        compare_with_reference(kernels, 100 + seed as u64, shape, 5, seed % 3);
    }
}

#[test]
fn kernels_give_the_references_bits_when_the_weights_do_not_fit_the_ring_at_once() {
    let Some(kernels) = host_kernels() else {
        return;
    };
    let Some(kernels) = &*kernels else { return };
    // 17 blocks of 64 columns, more than the stages of any tile; and sums
    // beyond 2^24 are possible.
    compare_with_reference(kernels, 7, (10, 1088, 1), 3, 0);
    compare_with_reference(kernels, 8, (10, 320, 2), 3, 4);
}

#[test]
fn exp_and_ln_of_the_kernels_are_the_references_bit_for_bit() {
    let Some(kernels) = host_kernels() else {
        return;
    };
    let Some(kernels) = &*kernels else { return };
    let mut numbers = Numbers(3);
    let map = |name: &str, x: &[f64]| {
        let mut y = vec![0.0; x.len()];
        // SAFETY: both have the length given.
        unsafe { kernels.function::<DoubleMap>(name)(x.as_ptr(), y.as_mut_ptr(), x.len()) };
        y
    };
    let bits = |values: &[f64]| values.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    let random = (0..100_000).map(|_| (numbers.next() >> 11) as f64 / (1u64 << 53) as f64);
    let random: Vec<f64> = random.collect();
    let below: Vec<f64> = random.iter().map(|x| -720.0 * x * x * x).collect();
    let expected: Vec<f64> = below.iter().map(|&x| logsumexp::exp(x)).collect();
    assert_eq!(bits(&map("host_exp", &below)), bits(&expected));
    assert_eq!(
        map("host_exp", &[0.0, -0.0, -708.0, -1e30]),
        [1.0, 1.0, logsumexp::exp(-708.0), 0.0]
    );
    let above: Vec<f64> = random.iter().map(|x| 1.0 + 1e6 * x * x * x * x).collect();
    let expected: Vec<f64> = above.iter().map(|&x| logsumexp::ln(x)).collect();
    assert_eq!(bits(&map("host_ln", &above)), bits(&expected));
    assert_eq!(map("host_ln", &[1.0]), [0.0]);
}

#[test]
fn the_highest_logits_are_those_of_a_stable_sort_and_the_log_sum_exp_is_the_references() {
    let Some(kernels) = host_kernels() else {
        return;
    };
    let Some(kernels) = &*kernels else { return };
    // SAFETY: only returns a number.
    let bytes = unsafe { kernels.function::<Bytes>("host_top_shared_bytes")() };
    assert_eq!(bytes as usize, launch::TOP_SHARED_BYTES);
    let mut numbers = Numbers(4);
    for vocabulary in [1, 2, 63, 64, 65, 78, 300, 2048, 2049, 5000] {
        // Random logits; logits with many equal ones, zeros of both signs among
        // them; all equal; and far apart.
        let mut rows: Vec<Vec<f32>> = vec![
            numbers.floats(vocabulary, 12.0),
            (0..vocabulary)
                .map(|_| (numbers.below(9) as f32 - 4.0) * -0.5)
                .collect(),
            vec![-0.25; vocabulary],
            numbers.floats(vocabulary, 3e38),
        ];
        rows[1]
            .iter_mut()
            .step_by(3)
            .for_each(|logit| *logit *= -1.0);
        let mut table = vec![0xEEEE_EEEE_u32; table_words(8, 1)];
        table[0] = rows.len() as u32;
        let logits = rows.concat();
        let mut log_sums = vec![f64::NAN; 8];
        let mut ids = vec![u32::MAX; 8 * TOP];
        let mut top = vec![f32::NAN; 8 * TOP];
        kernels.run(&Launch {
            kernel: Kernel::Top(TopArguments {
                logits: logits.as_ptr() as u64,
                table: table.as_ptr() as u64,
                log_sums: log_sums.as_mut_ptr() as u64,
                ids: ids.as_mut_ptr() as u64,
                top: top.as_mut_ptr() as u64,
                vocabulary: vocabulary as i32,
            }),
            grid: [8, 1, 1],
        });
        for (row, logits) in rows.iter().enumerate() {
            let expected = logsumexp::log_sum_exp(logits);
            assert_eq!(
                log_sums[row].to_bits(),
                expected.to_bits(),
                "{vocabulary}, {row}"
            );
            let mut order: Vec<u32> = (0..vocabulary as u32).collect();
            order.sort_by(|&a, &b| {
                let [a, b] = [a, b].map(|id| logits[id as usize]);
                b.partial_cmp(&a).expect("no NaN")
            });
            order.truncate(TOP);
            let given = &ids[row * TOP..][..order.len()];
            assert_eq!(given, order, "{vocabulary}, {row}");
            let expected: Vec<f32> = order.iter().map(|&id| logits[id as usize]).collect();
            assert_eq!(bits(&top[row * TOP..][..order.len()]), bits(&expected));
        }
        assert!(log_sums[rows.len()..].iter().all(|sum| sum.is_nan()));
    }
}
