//! Weights laid out for a kernel: panels that one pass over h keeps in
//! registers.

use crate::GATES;
use crate::kernel::{Block, DEPTH, Registers};
use crate::network::{QuantisedLayer, QuantisedNetwork};
use crate::quantisation::QuantisedMatrix;
use crate::shape::Shape;

/// Registers of weights in a full panel. In an LSTM layer they are the four
/// gates of `LANES` units, so that everything a cell needs ends in registers.
pub(crate) const PANEL: usize = GATES;

/// A float32 for each lane of the four registers of a panel.
pub(crate) type PanelFloats<R> = [<R as Registers>::FloatBlock; PANEL];

/// An int32 for each lane of the four registers of a panel.
pub(crate) type PanelInts<R> = [<R as Registers>::IntBlock; PANEL];

/// A weight matrix. Its rows are distributed over the lanes of registers.
pub(crate) struct PackedMatrix<R: Registers> {
    /// Words of h in a sum.
    groups: usize,
    /// `[registers / 4, groups, 4]`, then `[registers % 4, groups]`.
    weights: Vec<R::WeightBlock>,
    /// What the sums start from, `[registers]`: minus the offset of h times
    /// the sum of the weights.
    begin: Vec<R::IntBlock>,
    /// s', `[registers]`.
    scales: Vec<R::FloatBlock>,
}

/// Some registers of a matrix that are computed together.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a, R: Registers, const REGISTERS: usize> {
    /// `[groups, REGISTERS]`.
    pub(crate) weights: &'a [[R::WeightBlock; REGISTERS]],
    /// What the sums start from.
    pub(crate) begin: &'a [R::IntBlock; REGISTERS],
    /// s'.
    pub(crate) scales: &'a [R::FloatBlock; REGISTERS],
}

impl<R: Registers> PackedMatrix<R> {
    /// Packs a matrix into `registers` registers; `row` says which row belongs
    /// into a lane of a register, if any.
    fn new(
        matrix: &QuantisedMatrix,
        registers: usize,
        row: impl Fn(usize, usize) -> Option<usize>,
    ) -> Self {
        let groups = matrix.columns().div_ceil(DEPTH);
        let mut weights = vec![R::WeightBlock::ZERO; registers * groups];
        let mut begin = vec![R::IntBlock::ZERO; registers];
        let mut scales = vec![R::FloatBlock::ZERO; registers];
        let full = registers - registers % PANEL;
        for register in 0..registers {
            // Of the panel: its first register, and its number of registers.
            let (first, count) = if register < full {
                (register - register % PANEL, PANEL)
            } else {
                (register, 1)
            };
            for lane in 0..R::LANES {
                let Some(row) = row(register, lane) else {
                    continue;
                };
                for (group, values) in matrix.row(row).chunks(DEPTH).enumerate() {
                    let block = first * groups + group * count + (register - first);
                    weights[block].values_mut()[lane * DEPTH..][..values.len()]
                        .copy_from_slice(values);
                }
                let sum: i32 = matrix
                    .row(row)
                    .iter()
                    .map(|&weight| i32::from(weight))
                    .sum();
                // Whatever wraps here wraps back in the sum.
                begin[register].values_mut()[lane] = sum.wrapping_mul(-i32::from(R::OFFSET));
                scales[register].values_mut()[lane] = matrix.scales()[row];
            }
        }
        Self {
            groups,
            weights,
            begin,
            scales,
        }
    }

    /// Number of registers.
    pub(crate) fn registers(&self) -> usize {
        self.begin.len()
    }

    /// The panel that begins at register `first`.
    #[inline(always)]
    pub(crate) fn panel<const REGISTERS: usize>(&self, first: usize) -> Panel<'_, R, REGISTERS> {
        let weights = &self.weights[first * self.groups..][..REGISTERS * self.groups];
        let (weights, _) = weights.as_chunks();
        let (begin, _) = self.begin[first..].as_chunks();
        let (scales, _) = self.scales[first..].as_chunks();
        Panel {
            weights,
            begin: &begin[0],
            scales: &scales[0],
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.weights) + size_of_val(&*self.begin) + size_of_val(&*self.scales)
    }
}

/// One LSTM layer.
pub(crate) struct PackedLayer<R: Registers> {
    /// `weight_ih`; none in the first layer.
    pub(crate) input: Option<PackedMatrix<R>>,
    /// `weight_hh`.
    pub(crate) recurrent: PackedMatrix<R>,
    /// What the pre-activations start from, `[tokens, panels]`; only the first
    /// layer has more than one token.
    initial: Vec<PanelFloats<R>>,
}

impl<R: Registers> PackedLayer<R> {
    fn new(layer: &QuantisedLayer, hidden: usize, panels: usize) -> Self {
        let row = |register: usize, lane: usize| {
            let (panel, gate) = (register / PANEL, register % PANEL);
            let unit = panel * R::LANES + lane;
            (unit < hidden).then_some(gate * hidden + unit)
        };
        let pack = |matrix: &QuantisedMatrix| PackedMatrix::new(matrix, panels * PANEL, row);
        let rows = layer.recurrent().rows();
        let tokens = layer.initial().len() / rows;
        let mut initial = vec![[R::FloatBlock::ZERO; PANEL]; tokens * panels];
        for (token, numbers) in layer.initial().chunks_exact(rows).enumerate() {
            for register in 0..panels * PANEL {
                let (panel, gate) = (register / PANEL, register % PANEL);
                let block = &mut initial[token * panels + panel][gate];
                for (lane, value) in block.values_mut().iter_mut().enumerate() {
                    *value = row(register, lane).map_or(0.0, |row| numbers[row]);
                }
            }
        }
        Self {
            input: layer.input().map(pack),
            recurrent: pack(layer.recurrent()),
            initial,
        }
    }

    /// What the pre-activations of a panel start from. Layers other than the
    /// first have the token 0 only.
    #[inline(always)]
    pub(crate) fn initial(&self, token: usize, panel: usize, panels: usize) -> &PanelFloats<R> {
        &self.initial[token * panels + panel]
    }

    fn bytes(&self) -> usize {
        self.input.as_ref().map_or(0, PackedMatrix::bytes)
            + self.recurrent.bytes()
            + size_of_val(&*self.initial)
    }
}

/// A network.
pub(crate) struct PackedWeights<R: Registers> {
    pub(crate) registers: R,
    pub(crate) shape: Shape,
    /// Panels of a layer; the lanes of the last one beyond the hidden size
    /// hold zeros.
    pub(crate) panels: usize,
    pub(crate) layers: Vec<PackedLayer<R>>,
    /// `fc.weight`.
    pub(crate) output: PackedMatrix<R>,
    /// `fc.bias`, `[output registers]`.
    pub(crate) output_bias: Vec<R::FloatBlock>,
}

impl<R: Registers> PackedWeights<R> {
    /// Packs a network.
    pub(crate) fn new(registers: R, network: &QuantisedNetwork) -> Self {
        let shape = *network.shape();
        let (hidden, vocabulary) = (shape.hidden_size(), shape.vocabulary_size());
        let panels = hidden.div_ceil(R::LANES);
        let output_registers = vocabulary.div_ceil(R::LANES);
        let row = |register: usize, lane: usize| {
            let character = register * R::LANES + lane;
            (character < vocabulary).then_some(character)
        };
        let mut output_bias = vec![R::FloatBlock::ZERO; output_registers];
        for (block, bias) in output_bias
            .iter_mut()
            .zip(network.output_bias().chunks(R::LANES))
        {
            block.values_mut()[..bias.len()].copy_from_slice(bias);
        }
        Self {
            registers,
            shape,
            panels,
            layers: network
                .layers()
                .iter()
                .map(|layer| PackedLayer::new(layer, hidden, panels))
                .collect(),
            output: PackedMatrix::new(network.output(), output_registers, row),
            output_bias,
        }
    }

    /// Words of a row of h of one layer, the last panel's filling included.
    pub(crate) fn hidden_groups(&self) -> usize {
        self.panels * groups_per_panel::<R>()
    }

    /// Bytes of memory that the weights take.
    pub(crate) fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(PackedLayer::bytes).sum();
        layers + self.output.bytes() + size_of_val(&*self.output_bias)
    }
}

/// Words that hold the h of the units of a panel.
pub(crate) const fn groups_per_panel<R: Registers>() -> usize {
    R::LANES / DEPTH
}
