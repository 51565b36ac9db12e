//! Hashes of logits and states that every kernel on every machine must
//! produce. If one changes, the arithmetic has changed: that needs a new
//! revision, not a new hash.

use crate::random_network::{Noise, network, shape};
use charlstm_int8::{Batch, Kernel, PackedNetwork, REVISION, State, reference};

/// Vocabulary, hidden size, layers, largest weight, and the hash.
const GOLDEN: [(usize, usize, usize, f32, &str); 8] = [
    (1, 1, 1, 1.0, "99b10570dd47b1c8"),
    (78, 37, 1, 0.4, "866f5cea259cb132"),
    (78, 37, 2, 0.4, "f4ee27340f47116b"),
    (78, 37, 3, 0.4, "eb36df1c697380b0"),
    (1, 64, 2, 0.2, "b6319cf13c0f1fc7"),
    (5000, 29, 2, 0.5, "46ac3bde1c934a14"),
    (78, 512, 2, 0.08, "67050ea820a3a2fe"),
    (100, 130, 3, 2.0, "f09509c94e8d5f46"),
];

const STEPS: usize = 24;

/// FNV-1a of 64 bits.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }

    fn add_floats(&mut self, floats: &[f32]) {
        for float in floats {
            self.add(&float.to_le_bytes());
        }
    }

    fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Steps from the zero state over token ids that look like noise; the hash
/// covers all logits and the last state.
fn hash_of(vocabulary: usize, tokens: &[u32], mut step: impl FnMut(u32) -> Vec<f32>) -> Hash {
    let mut hash = Hash::new();
    for &token in tokens {
        let logits = step(token);
        assert_eq!(logits.len(), vocabulary);
        hash.add_floats(&logits);
    }
    hash
}

#[test]
fn the_reference_and_every_kernel_produce_the_golden_hashes() {
    assert_eq!(REVISION, 1, "the hashes are those of revision 1");
    for (seed, (vocabulary, hidden, layers, amplitude, golden)) in (100..).zip(GOLDEN) {
        let what = format!("vocabulary {vocabulary}, {layers} x {hidden}");
        let shape = shape(vocabulary, hidden, layers);
        let network = network(shape, seed, amplitude);
        let tokens = Noise(seed).tokens(&shape, STEPS);

        let mut state = State::zeros(&shape);
        let mut hash = hash_of(vocabulary, &tokens, |token| {
            reference::step(&network, &mut state, token);
            reference::logits(&network, &state)
        });
        hash.add(&state.to_bytes());
        assert_eq!(hash.hex(), golden, "reference, {what}");

        for kernel in Kernel::available() {
            let packed = PackedNetwork::new(&network, kernel).expect("available");
            let mut batch = Batch::new(&packed, 1);
            batch.push(&State::zeros(&shape));
            let mut hash = hash_of(vocabulary, &tokens, |token| batch.step(&[token]).to_vec());
            hash.add(&batch.state(0).to_bytes());
            assert_eq!(hash.hex(), golden, "{kernel}, steps, {what}");

            let mut state = State::zeros(&shape);
            let mut hash = Hash::new();
            hash.add_floats(&batch.prefill_logits(&mut state, &tokens));
            hash.add(&state.to_bytes());
            assert_eq!(hash.hex(), golden, "{kernel}, prefill, {what}");
        }
    }
}
