//! Networks, states and token ids that look like noise and are the same on
//! every machine.

use charlstm_int8::{FloatLayer, FloatNetwork, QuantisedNetwork, Shape, State};

/// The splitmix64 generator.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A multiple of 2^-23 from -1 to 1, exact in float32.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 * (1.0 / (1 << 23) as f32) - 1.0
    }

    fn tensor(&mut self, len: usize, amplitude: f32) -> Vec<f32> {
        (0..len).map(|_| self.unit() * amplitude).collect()
    }

    pub(crate) fn tokens(&mut self, shape: &Shape, count: usize) -> Vec<u32> {
        (0..count)
            .map(|_| self.below(shape.vocabulary_size()) as u32)
            .collect()
    }

    /// A state that a sequence could be in.
    pub(crate) fn state(&mut self, shape: &Shape) -> State {
        let units = shape.num_layers() * shape.hidden_size();
        let h = (0..units).map(|_| (self.below(255) as i16 - 127) as i8);
        let h = h.collect();
        let c = (0..units).map(|_| self.unit() * 3.0).collect();
        State::from_parts(shape, h, c).expect("within the bounds")
    }
}

pub(crate) fn shape(vocabulary: usize, hidden: usize, layers: usize) -> Shape {
    Shape::new(vocabulary, hidden, layers).expect("a shape")
}

/// A network whose weights are up to `amplitude`.
pub(crate) fn network(shape: Shape, seed: u64, amplitude: f32) -> QuantisedNetwork {
    let mut noise = Noise(seed);
    let (rows, hidden) = (shape.gate_rows(), shape.hidden_size());
    let layers: Vec<[Vec<f32>; 4]> = (0..shape.num_layers())
        .map(|layer| {
            let inputs = if layer == 0 {
                shape.vocabulary_size()
            } else {
                hidden
            };
            [
                noise.tensor(rows * inputs, amplitude),
                noise.tensor(rows * hidden, amplitude),
                noise.tensor(rows, 0.3),
                noise.tensor(rows, 0.3),
            ]
        })
        .collect();
    let fc_weight = noise.tensor(shape.vocabulary_size() * hidden, 0.3);
    let fc_bias = noise.tensor(shape.vocabulary_size(), 0.3);
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

/// The bits of floats, so that -0 and 0 differ and failures print.
pub(crate) fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|float| float.to_bits()).collect()
}
