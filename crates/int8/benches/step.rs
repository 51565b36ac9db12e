//! Speed of the int8 decode step on one thread, without a server around it:
//! microseconds per character for several batch sizes and for prefill, for
//! every kernel of this machine. `cargo bench -p charlstm-int8 --bench step`,
//! or with names of kernels behind `--`.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use charlstm_int8::{
    Batch, FloatLayer, FloatNetwork, Kernel, PackedNetwork, QuantisedNetwork, Shape, State,
};

/// The notebook's model on its own text.
const VOCABULARY: usize = 78;
const HIDDEN: usize = 512;

/// Batch sizes.
const ROWS: [usize; 9] = [1, 2, 4, 8, 12, 16, 64, 100, 256];

/// Characters of a prefill, and of the pieces that are timed.
const PREFILL: usize = 10_000;
const PIECE: usize = 200;

/// Time for a measurement, and the shortest part of it that is timed: the best
/// part and the median are printed. On a machine with other work, the best is
/// the time without interruption.
const TIME: Duration = Duration::from_millis(600);
const TIME_PER_PART: Duration = Duration::from_millis(1);

/// Multiply-adds of a character.
const PRODUCTS: usize = 3 * 4 * HIDDEN * HIDDEN + VOCABULARY * HIDDEN;

fn main() {
    let shape = Shape::new(VOCABULARY, HIDDEN, 2).expect("a shape");
    let network = network(shape);
    let named: Vec<Kernel> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    println!("one thread, 2 x {HIDDEN}, vocabulary {VOCABULARY}; microseconds per character");
    println!("kernel    what           best   median   characters/s   GOP/s");
    for kernel in Kernel::available() {
        if !named.is_empty() && !named.contains(&kernel) {
            continue;
        }
        let begin = Instant::now();
        let packed = PackedNetwork::new(&network, kernel).expect("available");
        let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
        println!(
            "{kernel:8}  packed in {milliseconds:.1} ms, {} bytes",
            packed.bytes()
        );
        for rows in ROWS {
            let mut batch = Batch::new(&packed, rows);
            for _ in 0..rows {
                batch.push(&State::zeros(&shape));
            }
            let mut at = 0;
            report(kernel, &format!("batch {rows}"), || {
                at += 1;
                let tokens: Vec<u32> = (0..rows).map(|row| token(at + 7 * row)).collect();
                black_box(batch.step(&tokens));
                rows
            });
        }
        let mut batch = Batch::new(&packed, 1);
        batch.push(&State::zeros(&shape));
        batch.set_partner(true).expect("a thread");
        let mut at = 0;
        report(kernel, "1, two threads", || {
            at += 1;
            black_box(batch.step(&[token(at)]));
            1
        });
        let tokens: Vec<u32> = (0..PREFILL).map(token).collect();
        let mut batch = Batch::new(&packed, 0);
        let mut pieces = tokens.chunks_exact(PIECE).cycle();
        let mut state = State::zeros(&shape);
        report(kernel, "prefill", || {
            batch.prefill(&mut state, pieces.next().expect("a cycle"));
            PIECE
        });
        report(kernel, "prefill+logits", || {
            black_box(batch.prefill_logits(&mut state, pieces.next().expect("a cycle")));
            PIECE
        });
    }
}

fn token(at: usize) -> u32 {
    (at * at % VOCABULARY) as u32
}

/// Measures something that returns how many characters it computed.
fn report(kernel: Kernel, what: &str, mut run: impl FnMut() -> usize) {
    run();
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < TIME {
        let mut characters = 0;
        let begin = Instant::now();
        while begin.elapsed() < TIME_PER_PART {
            characters += run();
        }
        times.push(begin.elapsed().as_secs_f64() * 1e6 / characters as f64);
    }
    times.sort_by(f64::total_cmp);
    let (best, median) = (times[0], times[times.len() / 2]);
    println!(
        "{:8}  {what:14} {best:7.2} {median:8.2} {:14.0} {:7.0}",
        kernel.name(),
        1e6 / median,
        2.0 * PRODUCTS as f64 / median / 1e3
    );
}

fn network(shape: Shape) -> QuantisedNetwork {
    let mut at = 0u32;
    let mut tensor = |len: usize| -> Vec<f32> {
        (0..len)
            .map(|_| {
                at += 1;
                0.08 * (at as f32 * 12.9898).sin()
            })
            .collect()
    };
    let rows = shape.gate_rows();
    let layers: Vec<[Vec<f32>; 4]> = [VOCABULARY, HIDDEN]
        .map(|inputs| {
            [
                tensor(rows * inputs),
                tensor(rows * HIDDEN),
                tensor(rows),
                tensor(rows),
            ]
        })
        .into();
    let (fc_weight, fc_bias) = (tensor(VOCABULARY * HIDDEN), tensor(VOCABULARY));
    let network = FloatNetwork {
        layers: layers
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
    QuantisedNetwork::new(shape, &network).expect("weights within the bounds")
}
