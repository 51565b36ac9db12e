//! Tests that run the kernel sources on the CPU, compiled as C++ with a header
//! that stands in for the device (`tests/host/emulation.h`), and compare every
//! result with the scalar reference, bit for bit. Weights, tables and launches
//! are made by the same functions as on a device.

use std::ffi::{CString, c_char, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use charlstm_int8::{QuantisedNetwork, Shape, State, activation, logsumexp, reference};

#[path = "../examples/gpu_check/random.rs"]
mod random;
mod score;

use random::{Numbers, random_network, random_state};

use crate::error::CudaError;
use crate::launch::{
    self, BatchAddresses, Exchange, Kernel, Launch, MAX_WHOLE_CHUNK, NetworkAddresses, OutputRows,
    PrefillDivision, TABLE_HEADER, TILES, TOP, TileChoice, TopArguments, table_entry, table_words,
};
use crate::network::place_network;
use crate::state_layout::StateLayout;

/// The kernel sources, compiled for the CPU.
struct HostKernels(libloading::Library);

type Map = unsafe extern "C" fn(*const f32, *mut f32, usize);
type Cell = unsafe extern "C" fn(*const f32, *mut f32, *mut i8, usize);
type Scaled = unsafe extern "C" fn(*const i32, *const f32, *const f32, *mut f32, usize);
type DoubleMap = unsafe extern "C" fn(*const f64, *mut f64, usize);
type Bytes = unsafe extern "C" fn() -> c_uint;
type Schedule = unsafe extern "C" fn(c_uint);
type LaunchFunction = unsafe extern "C" fn(
    *const c_char,
    *const c_void,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
) -> bool;

/// The kernels, for one test at a time, because the emulation has global state.
type Locked = MutexGuard<'static, Option<HostKernels>>;

/// Compiles the sources once per test process. `None` if there is no compiler,
/// which fails the tests if CHARLSTM_REQUIRE_ALL is set.
fn host_kernels() -> Option<Locked> {
    static KERNELS: Mutex<Option<HostKernels>> = Mutex::new(None);
    let mut kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    if kernels.is_none() {
        *kernels = compile_for_host();
    }
    kernels.is_some().then_some(kernels)
}

fn compile_for_host() -> Option<HostKernels> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    if Command::new(&compiler).arg("--version").output().is_err() {
        assert!(
            std::env::var_os("CHARLSTM_REQUIRE_ALL").is_none(),
            "{compiler} is not installed, and CHARLSTM_REQUIRE_ALL is set"
        );
        eprintln!("skipped: {compiler} is not installed");
        return None;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = folder.path().join("kernels_on_host.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/kernels_on_host.cpp");
    let output = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wno-unknown-pragmas",
        ])
        .args(["-ffp-contract=off", "-fPIC", "-shared", "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .expect("the compiler runs");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    // SAFETY: the library has no initialisers with preconditions.
    let library = unsafe { libloading::Library::new(&library) };
    Some(HostKernels(library.expect("the library loads")))
}

impl HostKernels {
    fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the types above are those of kernels_on_host.cpp.
        *unsafe { self.0.get::<F>(name.as_bytes()) }.expect("the function exists")
    }

    fn map(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        // SAFETY: both have the length given.
        unsafe { self.function::<Map>(name)(x.as_ptr(), y.as_mut_ptr(), x.len()) };
        y
    }

    /// Runs one launch to its end.
    fn run(&self, launch: &Launch) {
        let name = match launch.kernel {
            Kernel::Layer { tile, .. } => format!("layer_{}", TILES[tile].rows),
            Kernel::Output { tile, .. } => format!("output_{}", TILES[tile].rows),
            Kernel::Prefill { division, .. } => format!("prefill_{}", 8 * division.groups),
            Kernel::Top(_) => "top_logits".to_owned(),
            Kernel::CopyStates(_) => "copy_states".to_owned(),
            Kernel::ScoreWave(_) => "score_wave".to_owned(),
            Kernel::ScoreLogits(_) => "score_logits".to_owned(),
        };
        let name = CString::new(name).expect("a name");
        let [x, y, z] = launch.grid;
        // SAFETY: the arguments are of the kernel's type, and point to memory
        // of the sizes that the launch is for.
        let known = unsafe {
            self.function::<LaunchFunction>("host_launch")(
                name.as_ptr(),
                launch.arguments(),
                x,
                y,
                z,
                launch.threads() as c_uint,
                launch.shared_bytes() as c_uint,
            )
        };
        assert!(known, "there is no kernel {name:?}");
    }
}

/// Memory with the alignment that the kernels need.
fn aligned(bytes: usize) -> Vec<u128> {
    vec![0xEEEE_EEEE_EEEE_EEEE_EEEE_EEEE_EEEE_EEEE; bytes.div_ceil(16).max(1)]
}

fn aligned_copy<T: Copy>(values: &[T]) -> Vec<u128> {
    let mut memory = aligned(size_of_val(values));
    // SAFETY: the memory is large enough, and the types are plain numbers.
    unsafe {
        std::ptr::copy_nonoverlapping(
            values.as_ptr().cast::<u8>(),
            memory.as_mut_ptr().cast::<u8>(),
            size_of_val(values),
        );
    }
    memory
}

/// How known characters are processed: with a launch per wave, or with one.
#[derive(Clone, Copy)]
enum Prefill {
    Waves(TileChoice),
    Whole(PrefillDivision),
}

/// A network and a batch in host memory.
struct HostBatch<'a> {
    kernels: &'a HostKernels,
    shape: Shape,
    addresses: NetworkAddresses,
    layout: StateLayout,
    states: Vec<u128>,
    parity: Vec<u32>,
    _weights: Vec<Vec<u128>>,
}

impl<'a> HostBatch<'a> {
    fn new(kernels: &'a HostKernels, network: &QuantisedNetwork, states: &[State]) -> Self {
        let weights = std::cell::RefCell::new(Vec::new());
        let keep = |memory: Vec<u128>| {
            let address = memory.as_ptr() as u64;
            weights.borrow_mut().push(memory);
            Ok(address)
        };
        let addresses = place_network(
            network,
            |values| keep(aligned_copy(&values)),
            |values| keep(aligned_copy(&values)),
        )
        .expect("a network of a supported size");
        let shape = *network.shape();
        let layout = StateLayout::new(&shape);
        let mut batch = Self {
            kernels,
            shape,
            addresses,
            layout,
            states: aligned(2 * states.len() * layout.bytes()),
            parity: vec![0; states.len()],
            _weights: weights.into_inner(),
        };
        for (slot, state) in states.iter().enumerate() {
            // Half of the slots start with the other state row.
            batch.parity[slot] = (slot % 2) as u32;
            let row = batch.row(slot);
            layout.pack(state, row);
        }
        batch
    }

    /// The bytes of the current state row of a slot.
    fn row(&mut self, slot: usize) -> &mut [u8] {
        let bytes = self.layout.bytes();
        let row = 2 * slot + self.parity[slot] as usize;
        // SAFETY: the rows are within `states`.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.states.as_mut_ptr().cast::<u8>().add(row * bytes),
                bytes,
            )
        }
    }

    /// The states of all slots, as the kernel that collects them returns them.
    fn states(&self) -> Vec<State> {
        let bytes = self.layout.bytes();
        let rows: Vec<u32> = (0..self.parity.len())
            .map(|slot| 2 * slot as u32 + self.parity[slot])
            .collect();
        let mut out = aligned(rows.len() * bytes);
        self.kernels.run(&launch::copy_states(
            self.states.as_ptr() as u64,
            rows.as_ptr() as u64,
            out.as_mut_ptr() as u64,
            rows.len(),
            bytes,
        ));
        // SAFETY: the memory has this many bytes.
        let out =
            unsafe { std::slice::from_raw_parts(out.as_ptr().cast::<u8>(), rows.len() * bytes) };
        out.chunks_exact(bytes)
            .map(|row| self.layout.unpack(row).expect("a possible state"))
            .collect()
    }

    /// One decode step of the named slots; the logits of each.
    fn step(&mut self, rows: &[(usize, u32)], tiles: TileChoice) -> Vec<Vec<f32>> {
        let bucket = launch::bucket(rows.len());
        let mut table = vec![0xEEEE_EEEE_u32; table_words(bucket, 1)];
        table[0] = rows.len() as u32;
        for (place, &(slot, token)) in rows.iter().enumerate() {
            let row = 2 * slot as u32 + self.parity[slot];
            table[TABLE_HEADER + place] = table_entry(row, 1);
            table[TABLE_HEADER + bucket + place] = token;
        }
        let vocabulary = self.shape.vocabulary_size();
        let mut logits = vec![f32::NAN; bucket * vocabulary];
        let addresses = BatchAddresses {
            states: self.states.as_mut_ptr() as u64,
            table: table.as_ptr() as u64,
            logits: logits.as_mut_ptr() as u64,
            history: 0,
        };
        for launch in launch::step(&self.addresses, &addresses, bucket, tiles) {
            self.kernels.run(&launch);
        }
        for &(slot, _) in rows {
            self.parity[slot] ^= 1;
        }
        assert!(
            logits[rows.len() * vocabulary..].iter().all(|x| x.is_nan()),
            "logits of rows that are not in use were written"
        );
        let rows = logits[..rows.len() * vocabulary].chunks_exact(vocabulary);
        rows.map(<[f32]>::to_vec).collect()
    }

    /// Returns h of the last layer after each character,
    /// `[rows][MAX_WHOLE_CHUNK][hidden]`.
    fn prefill(
        &mut self,
        rows: &[(usize, &[u32])],
        characters: usize,
        method: Prefill,
    ) -> Vec<u128> {
        let bucket = launch::bucket(rows.len());
        let mut table = vec![0xEEEE_EEEE_u32; table_words(bucket, characters)];
        table[0] = rows.len() as u32;
        for (place, &(slot, tokens)) in rows.iter().enumerate() {
            let row = 2 * slot as u32 + self.parity[slot];
            table[TABLE_HEADER + place] = table_entry(row, tokens.len());
            for (character, &token) in tokens.iter().enumerate() {
                table[TABLE_HEADER + bucket * (1 + character) + place] = token;
            }
        }
        let mut history = aligned(rows.len() * MAX_WHOLE_CHUNK * self.addresses.hidden);
        let addresses = BatchAddresses {
            states: self.states.as_mut_ptr() as u64,
            table: table.as_ptr() as u64,
            logits: 0,
            history: history.as_mut_ptr() as u64,
        };
        let network = &self.addresses;
        let mut exchange = aligned(launch::exchange_bytes(
            network.hidden,
            network.layers,
            rows.len(),
        ));
        let launches = match method {
            Prefill::Waves(tiles) => {
                launch::prefill(network, &addresses, bucket, characters, tiles)
            }
            Prefill::Whole(division) => {
                let exchange = Exchange {
                    address: exchange.as_mut_ptr() as u64,
                    base: 1000,
                };
                vec![launch::whole_prefill(
                    network,
                    &addresses,
                    &exchange,
                    division,
                    rows.len(),
                    characters,
                )]
            }
        };
        for launch in &launches {
            self.kernels.run(launch);
        }
        for &(slot, tokens) in rows {
            self.parity[slot] ^= tokens.len() as u32 & 1;
        }
        history
    }

    /// Logits after each of the first `count` characters of a row of `history`.
    fn history_logits(
        &self,
        history: &[u128],
        row: usize,
        count: usize,
        tiles: TileChoice,
    ) -> Vec<Vec<f32>> {
        let network = &self.addresses;
        let bucket = launch::bucket(count);
        let table: Vec<u32> = [count as u32, 0, 0, 0]
            .into_iter()
            .chain(0..bucket as u32)
            .collect();
        let vocabulary = self.shape.vocabulary_size();
        let mut logits = vec![f32::NAN; bucket * vocabulary];
        let rows = OutputRows {
            address: history.as_ptr() as u64 + (row * MAX_WHOLE_CHUNK * network.hidden) as u64,
            row_bytes: network.hidden as u64,
            table: table.as_ptr() as u64,
            logits: logits.as_mut_ptr() as u64,
        };
        self.kernels
            .run(&launch::output(network, &rows, bucket, tiles.output));
        let rows = logits.chunks_exact(vocabulary).take(count);
        rows.map(<[f32]>::to_vec).collect()
    }
}

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
