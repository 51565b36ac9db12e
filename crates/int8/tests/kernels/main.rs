//! Every kernel that this machine can run gives the bits of the reference.

mod golden;
mod random_network;

use charlstm_int8::{
    Batch, FloatLayer, FloatNetwork, Kernel, PackedNetwork, QuantisedNetwork, Shape, State,
    reference,
};
use random_network::{Noise, bits, network, shape};

/// Hidden sizes below, at, above and between the sizes of registers, and
/// numbers of groups of h that are even and odd; vocabularies of one character,
/// of an incomplete and of many panels; one to three layers.
fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for hidden in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40, 63, 64, 100] {
        for layers in 1..=3 {
            let vocabulary = [1, 2, 15, 16, 17, 64, 65, 78, 80, 81, 129][(hidden + layers) % 11];
            shapes.push(shape(vocabulary, hidden, layers));
        }
    }
    shapes.push(shape(5000, 24, 2));
    shapes
}

fn kernels(network: &QuantisedNetwork) -> Vec<PackedNetwork> {
    Kernel::available()
        .into_iter()
        .map(|kernel| PackedNetwork::new(network, kernel).expect("available"))
        .collect()
}

/// The logits after each of the characters, and the state after the last.
fn expected(network: &QuantisedNetwork, state: &State, tokens: &[u32]) -> (Vec<f32>, State) {
    let mut state = state.clone();
    let mut logits = Vec::new();
    for &token in tokens {
        reference::step(network, &mut state, token);
        logits.extend(reference::logits(network, &state));
    }
    (logits, state)
}

fn assert_steps_equal_the_reference(network: &QuantisedNetwork, seed: u64, rows: usize) {
    let shape = network.shape();
    let vocabulary = shape.vocabulary_size();
    let mut noise = Noise(seed);
    let steps = 5;
    let sequences: Vec<(State, Vec<u32>)> = (0..rows)
        .map(|_| (noise.state(shape), noise.tokens(shape, steps)))
        .collect();
    let expected: Vec<(Vec<f32>, State)> = sequences
        .iter()
        .map(|(state, tokens)| expected(network, state, tokens))
        .collect();
    for packed in kernels(network) {
        let mut batch = Batch::new(&packed, rows);
        for (state, _) in &sequences {
            batch.push(state);
        }
        for step in 0..steps {
            let tokens: Vec<u32> = sequences.iter().map(|(_, tokens)| tokens[step]).collect();
            let logits = batch.step(&tokens);
            for (row, (expected, _)) in expected.iter().enumerate() {
                assert_eq!(
                    bits(&logits[row * vocabulary..][..vocabulary]),
                    bits(&expected[step * vocabulary..][..vocabulary]),
                    "{packed:?}, row {row} of {rows}, step {step}"
                );
            }
        }
        for (row, (_, state)) in expected.iter().enumerate() {
            assert_eq!(
                batch.state(row).to_bytes(),
                state.to_bytes(),
                "{packed:?}, row {row} of {rows}"
            );
        }
    }
}

#[test]
fn every_kernel_equals_the_reference_for_networks_of_all_shapes_and_any_number_of_rows() {
    let mut noise = Noise(1);
    for (seed, shape) in (0..).zip(shapes()) {
        for amplitude in [0.05, 1.0] {
            let network = network(shape, seed, amplitude);
            for rows in [1, 1 + noise.below(8), 9 + noise.below(12)] {
                assert_steps_equal_the_reference(&network, seed, rows);
            }
        }
    }
}

#[test]
fn every_number_of_rows_from_1_to_20_equals_the_reference() {
    let network = network(shape(13, 40, 2), 3, 0.3);
    for rows in 1..=20 {
        assert_steps_equal_the_reference(&network, 4, rows);
    }
}

#[test]
fn a_network_of_the_usual_size_equals_the_reference() {
    let network = network(shape(78, 512, 2), 5, 0.1);
    assert_steps_equal_the_reference(&network, 6, 1);
    assert_steps_equal_the_reference(&network, 7, 9);
}

/// All weights of the recurrent matrix have the largest int8 magnitude, and so
/// has h: sums beyond 2^24, which float32 has to round.
#[test]
fn sums_that_float32_cannot_hold_are_rounded_alike() {
    let hidden = 1400;
    let shape = shape(2, hidden, 1);
    let rows = shape.gate_rows();
    let mut noise = Noise(8);
    // Mostly 127, with a few others so that odd sums occur.
    let weight = |noise: &mut Noise| match noise.below(8) {
        0 => 1.0,
        1 => noise.unit() * 1.27,
        _ => 1.27,
    };
    let weight_hh: Vec<f32> = (0..rows * hidden)
        .map(|k| weight(&mut noise) * if k / hidden % 2 == 0 { 1.0 } else { -1.0 })
        .collect();
    let fc_weight: Vec<f32> = (0..2 * hidden).map(|_| weight(&mut noise)).collect();
    let zeros = vec![0.0; 2 * rows];
    let network = FloatNetwork {
        layers: vec![FloatLayer {
            weight_ih: &zeros,
            weight_hh: &weight_hh,
            bias_ih: &zeros[..rows],
            bias_hh: &zeros[..rows],
        }],
        fc_weight: &fc_weight,
        fc_bias: &[0.0; 2],
    };
    let network = QuantisedNetwork::new(shape, &network).expect("a network");
    for sign in [1, -1] {
        let h = (0..hidden).map(|k| sign * (127 - (k % 2) as i8)).collect();
        let c = vec![20.0 * f32::from(sign); hidden].into();
        let state = State::from_parts(&shape, h, c).expect("a state");
        let recurrent = network.layers()[0].recurrent();
        let inexact = (0..rows).any(|row| {
            let dot = reference::dot(recurrent.row(row), state.h());
            dot.abs() > 1 << 24 && dot % 2 != 0
        });
        assert!(inexact, "no sum needs rounding");
        let (logits, after) = expected(&network, &state, &[0, 1, 0]);
        for packed in kernels(&network) {
            let mut batch = Batch::new(&packed, 1);
            batch.push(&state);
            for (step, token) in [0, 1, 0].into_iter().enumerate() {
                assert_eq!(
                    bits(batch.step(&[token])),
                    bits(&logits[2 * step..][..2]),
                    "{packed:?}, step {step}"
                );
            }
            assert_eq!(batch.state(0).to_bytes(), after.to_bytes(), "{packed:?}");
        }
    }
}

/// Weights at the bound of 1e6 and states at theirs: everything stays finite.
#[test]
fn the_largest_weights_and_states_lead_to_finite_numbers_alike() {
    let shape = shape(5, 37, 2);
    let rows = shape.gate_rows();
    let mut noise = Noise(9);
    let mut large = |len: usize| -> Vec<f32> {
        let sign = |noise: &mut Noise| [-1e6, 1e6, 1e-38, 0.0][noise.below(4)];
        (0..len).map(|_| sign(&mut noise)).collect()
    };
    let tensors: Vec<[Vec<f32>; 4]> = [5, 37]
        .map(|inputs| {
            [
                large(rows * inputs),
                large(rows * 37),
                large(rows),
                large(rows),
            ]
        })
        .into();
    let (fc_weight, fc_bias) = (large(5 * 37), large(5));
    let network = FloatNetwork {
        layers: tensors
            .iter()
            .map(|[weight_ih, weight_hh, bias_ih, bias_hh]| FloatLayer {
                weight_ih,
                weight_hh,
                bias_ih,
                bias_hh,
            })
            .collect(),
        fc_weight: &fc_weight,
        fc_bias: &fc_bias,
    };
    let network = QuantisedNetwork::new(shape, &network).expect("a network");
    let limit = charlstm_int8::MAX_CELL;
    let h = (0..74)
        .map(|k| if k % 3 == 0 { -127 } else { 127 })
        .collect();
    let c = (0..74)
        .map(|k| if k % 2 == 0 { limit } else { -limit })
        .collect();
    let state = State::from_parts(&shape, h, c).expect("a state");
    let tokens = Noise(10).tokens(&shape, 50);
    let (logits, after) = expected(&network, &state, &tokens);
    assert!(logits.iter().all(|logit| logit.is_finite()));
    assert!(State::from_bytes(&shape, &after.to_bytes()).is_ok());
    for packed in kernels(&network) {
        let mut state = state.clone();
        let mut batch = Batch::new(&packed, 1);
        assert_eq!(
            bits(&batch.prefill_logits(&mut state, &tokens)),
            bits(&logits),
            "{packed:?}"
        );
        assert_eq!(state.to_bytes(), after.to_bytes(), "{packed:?}");
    }
}

#[test]
fn a_row_is_the_same_alone_and_among_100_others_that_come_and_go() {
    let shape = shape(78, 72, 2);
    let network = network(shape, 11, 0.3);
    let mut noise = Noise(12);
    let steps = 30;
    let (start, tokens) = (noise.state(&shape), noise.tokens(&shape, steps));
    let (expected, after) = expected(&network, &start, &tokens);
    for packed in kernels(&network) {
        for most in [2, 10, 101] {
            let mut batch = Batch::new(&packed, most);
            let mut row = batch.push(&start);
            for step in 0..steps {
                // Now and then a row comes, leaves, or starts again.
                for _ in 0..noise.below(most) {
                    let other = noise.below(batch.rows());
                    match noise.below(4) {
                        0 if batch.rows() < most => {
                            batch.push(&noise.state(&shape));
                        }
                        1 if other != row => {
                            let last = batch.rows() - 1;
                            let removed = batch.swap_remove(other);
                            if row == last {
                                row = other;
                            }
                            assert!(removed.fits(&shape));
                        }
                        2 if other != row => batch.reset(other),
                        3 if other != row => {
                            batch.copy_row(row, other);
                            row = other;
                        }
                        _ => {}
                    }
                }
                let mut all = noise.tokens(&shape, batch.rows());
                all[row] = tokens[step];
                let logits = batch.step(&all);
                assert_eq!(
                    bits(&logits[row * 78..][..78]),
                    bits(&expected[step * 78..][..78]),
                    "{packed:?}, step {step}, row {row} of {}",
                    all.len()
                );
            }
            assert_eq!(batch.swap_remove(row).to_bytes(), after.to_bytes());
        }
    }
}

/// Few and many rows are computed in different ways, and a row that stays
/// goes from one to the other.
#[test]
fn a_row_is_the_same_while_the_batch_grows_and_shrinks() {
    let shape = shape(7, 50, 2);
    let network = network(shape, 24, 0.4);
    let counts = [1, 2, 12, 1, 12, 3, 5, 4, 5, 1, 1, 6, 2];
    let mut noise = Noise(25);
    let (start, tokens) = (noise.state(&shape), noise.tokens(&shape, counts.len()));
    let (expected, _) = expected(&network, &start, &tokens);
    for packed in kernels(&network) {
        let mut batch = Batch::new(&packed, 12);
        batch.push(&start);
        for (step, (&count, &token)) in counts.iter().zip(&tokens).enumerate() {
            batch.truncate(count);
            while batch.rows() < count {
                batch.push(&noise.state(&shape));
            }
            let mut all = noise.tokens(&shape, count);
            all[0] = token;
            assert_eq!(
                bits(&batch.step(&all)[..7]),
                bits(&expected[step * 7..][..7]),
                "{packed:?}, step {step}"
            );
        }
    }
}

#[test]
fn a_removed_row_continues_elsewhere_and_the_last_row_takes_its_place() {
    let shape = shape(6, 9, 2);
    let network = network(shape, 13, 0.5);
    let mut noise = Noise(14);
    for packed in kernels(&network) {
        let mut batch = Batch::new(&packed, 4);
        let states: Vec<State> = (0..3).map(|_| noise.state(&shape)).collect();
        for state in &states {
            batch.push(state);
        }
        assert_eq!(batch.swap_remove(0), states[0]);
        assert_eq!(batch.rows(), 2);
        assert_eq!(batch.state(0), states[2]);
        assert_eq!(batch.state(1), states[1]);
        batch.reset(1);
        assert_eq!(batch.state(1), State::zeros(&shape));
        assert_eq!(batch.swap_remove(1), State::zeros(&shape));
        assert_eq!(batch.state(0), states[2]);
        batch.push(&states[1]);
        batch.copy_row(0, 1);
        assert_eq!(batch.state(1), states[2]);
        batch.set_state(0, &states[0]);
        batch.truncate(1);
        assert_eq!((batch.rows(), batch.state(0)), (1, states[0].clone()));
    }
}

#[test]
fn prefill_and_steps_in_any_split_give_the_same_bits() {
    for (seed, shape) in [
        (15, shape(13, 37, 3)),
        (16, shape(78, 64, 2)),
        (17, shape(3, 5, 1)),
    ] {
        let network = network(shape, seed, 0.4);
        let vocabulary = shape.vocabulary_size();
        let mut noise = Noise(seed);
        let (start, tokens) = (noise.state(&shape), noise.tokens(&shape, 200));
        let (expected, after) = expected(&network, &start, &tokens);
        for packed in kernels(&network) {
            for _ in 0..6 {
                let mut batch = Batch::new(&packed, 2);
                let mut state = start.clone();
                let mut logits = Vec::new();
                let mut rest = &tokens[..];
                while !rest.is_empty() {
                    let longest = [1, 3, 33, 200][noise.below(4)];
                    let (now, later) = rest.split_at((1 + noise.below(longest)).min(rest.len()));
                    match noise.below(3) {
                        0 => {
                            batch.prefill(&mut state, now);
                            let end = tokens.len() - later.len();
                            logits.extend_from_slice(&expected[logits.len()..end * vocabulary]);
                        }
                        1 => logits.extend(batch.prefill_logits(&mut state, now)),
                        _ => {
                            batch.push(&noise.state(&shape));
                            let row = batch.push(&state);
                            for &token in now {
                                let other = noise.below(vocabulary) as u32;
                                let both = batch.step(&[other, token]);
                                logits.extend_from_slice(&both[vocabulary..]);
                            }
                            state = batch.swap_remove(row);
                            batch.swap_remove(0);
                        }
                    }
                    rest = later;
                }
                assert_eq!(bits(&logits), bits(&expected), "{packed:?}");
                assert_eq!(state.to_bytes(), after.to_bytes(), "{packed:?}");
            }
        }
    }
}

/// Whether the partner is quick, late or asleep depends on the machine; the
/// pauses make all of it occur.
#[test]
fn steps_shared_with_a_second_thread_give_the_same_bits() {
    for (seed, shape) in [
        (20, shape(13, 100, 3)),
        (21, shape(78, 130, 2)),
        (22, shape(3, 70, 1)),
        (23, shape(5, 3, 2)),
    ] {
        let network = network(shape, seed, 0.4);
        let mut noise = Noise(seed);
        let steps = 120;
        let (start, tokens) = (noise.state(&shape), noise.tokens(&shape, steps));
        let (expected, after) = expected(&network, &start, &tokens);
        for packed in kernels(&network) {
            let mut batch = Batch::new(&packed, 2);
            batch.set_partner(true).expect("a thread");
            let row = batch.push(&start);
            let mut logits = Vec::new();
            for (step, &token) in tokens.iter().enumerate() {
                match noise.below(40) {
                    0 => std::thread::sleep(std::time::Duration::from_micros(400)),
                    1 => batch.set_partner(step % 2 == 0).expect("a thread"),
                    2 => {
                        batch.push(&noise.state(&shape));
                        let state = batch.swap_remove(row);
                        batch.set_state(row, &state);
                    }
                    _ => {}
                }
                logits.extend_from_slice(batch.step(&[token]));
            }
            assert_eq!(bits(&logits), bits(&expected), "{packed:?}");
            assert_eq!(batch.state(row).to_bytes(), after.to_bytes(), "{packed:?}");
        }
    }
}

#[test]
fn a_prefill_of_no_characters_and_a_step_of_no_rows_change_nothing() {
    let shape = shape(4, 6, 2);
    let network = network(shape, 18, 0.5);
    for packed in kernels(&network) {
        let mut batch = Batch::new(&packed, 1);
        assert!(batch.step(&[]).is_empty());
        let start = Noise(19).state(&shape);
        let mut state = start.clone();
        assert!(batch.prefill_logits(&mut state, &[]).is_empty());
        assert_eq!(state, start);
    }
}

#[test]
fn a_thread_that_flushes_subnormals_gets_the_same_bits() {
    // c decays into subnormal numbers: forget gates of a half, no input.
    let shape = shape(1, 3, 1);
    let zeros = [0.0; 36];
    let network = FloatNetwork {
        layers: vec![FloatLayer {
            weight_ih: &zeros[..12],
            weight_hh: &zeros,
            bias_ih: &zeros[..12],
            bias_hh: &zeros[..12],
        }],
        fc_weight: &zeros[..3],
        fc_bias: &[0.0],
    };
    let network = QuantisedNetwork::new(shape, &network).expect("a network");
    let start = State::from_parts(&shape, [1; 3].into(), [1e-37; 3].into()).expect("a state");
    let (_, after) = expected(&network, &start, &[0; 5]);
    assert!(after.c().iter().all(|c| c.is_subnormal()), "{after:?}");
    for packed in kernels(&network) {
        let mut batch = Batch::new(&packed, 1);
        batch.push(&start);
        let mut state = start.clone();
        with_flush_to_zero(|| {
            for _ in 0..5 {
                batch.step(&[0]);
            }
            batch.prefill(&mut state, &[0; 5]);
        });
        assert_eq!(batch.state(0).to_bytes(), after.to_bytes(), "{packed:?}");
        assert_eq!(state.to_bytes(), after.to_bytes(), "{packed:?}");
    }
}

/// Runs something with the thread's control register as libtorch may set it.
#[cfg(target_arch = "x86_64")]
fn with_flush_to_zero(run: impl FnOnce()) {
    use std::arch::asm;
    let mut control = 0u32;
    // SAFETY: sets flush to zero and subnormals are zero, and restores the
    // former setting; in between no float of this function is computed.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut control);
        let flush = control | 0x8040;
        asm!("ldmxcsr [{}]", in(reg) &raw const flush);
        run();
        asm!("ldmxcsr [{}]", in(reg) &raw const control);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn with_flush_to_zero(run: impl FnOnce()) {
    run();
}
