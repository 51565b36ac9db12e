//! What is computed of a layer for a block of rows: sums and cells of a panel
//! of units, and logits of a panel of characters.

use crate::kernel::Registers;
use crate::packed::{
    PANEL, PackedLayer, PackedMatrix, PackedWeights, PanelFloats, PanelInts, groups_per_panel,
};
use crate::sums::{HiddenRows, RowBlock, Sums, cells, for_row_blocks, load, scale, store, sums};

/// New states of one layer, where cells are written.
pub(super) struct NewStates<'a, R: Registers> {
    /// c, `[rows, panels]`, replaced in place.
    pub(super) c: &'a mut [R::FloatBlock],
    /// The new h, `[rows, hidden groups]`.
    pub(super) h: &'a mut [u32],
}

impl<R: Registers> NewStates<'_, R> {
    #[inline(always)]
    pub(super) fn cells(
        &mut self,
        registers: R,
        panels: usize,
        panel: usize,
        row: usize,
        pre: [R::Floats; PANEL],
    ) {
        let groups = groups_per_panel::<R>();
        let index = row * panels + panel;
        let h = &mut self.h[index * groups..][..groups];
        cells(registers, pre, &mut self.c[index], h);
    }
}

/// Sums and cells of one panel of the first layer.
pub(super) struct FirstLayerPanel<'a, R: Registers> {
    pub(super) layer: &'a PackedLayer<R>,
    pub(super) panels: usize,
    pub(super) panel: usize,
    pub(super) tokens: &'a [u32],
    pub(super) h: HiddenRows<'a>,
    pub(super) new: NewStates<'a, R>,
}

impl<R: Registers> RowBlock<R> for FirstLayerPanel<'_, R> {
    #[inline(always)]
    fn compute<const ROWS: usize>(&mut self, registers: R, first: usize) {
        let matrix = self.layer.recurrent.panel::<PANEL>(self.panel * PANEL);
        let dots = sums::<R, ROWS, PANEL>(registers, matrix, self.h, first);
        for (row, dots) in (first..).zip(dots) {
            let token = self.tokens[row] as usize;
            let initial = self.layer.initial(token, self.panel, self.panels);
            let pre = scale(registers, dots, matrix.scales, load(registers, initial));
            self.new.cells(registers, self.panels, self.panel, row, pre);
        }
    }
}

/// Sums and cells of one panel of another layer than the first.
pub(super) struct UpperLayerPanel<'a, R: Registers> {
    pub(super) layer: &'a PackedLayer<R>,
    pub(super) input: &'a PackedMatrix<R>,
    pub(super) panels: usize,
    pub(super) panel: usize,
    /// The new h of the layer below.
    pub(super) below: HiddenRows<'a>,
    pub(super) h: HiddenRows<'a>,
    pub(super) new: NewStates<'a, R>,
}

impl<R: Registers> RowBlock<R> for UpperLayerPanel<'_, R> {
    #[inline(always)]
    fn compute<const ROWS: usize>(&mut self, registers: R, first: usize) {
        let recurrent = self.layer.recurrent.panel::<PANEL>(self.panel * PANEL);
        let input = self.input.panel::<PANEL>(self.panel * PANEL);
        let initial = load(registers, self.layer.initial(0, self.panel, self.panels));
        let dots = sums::<R, ROWS, PANEL>(registers, recurrent, self.h, first);
        let mut partial = [initial; ROWS];
        for (partial, dots) in partial.iter_mut().zip(dots) {
            *partial = scale(registers, dots, recurrent.scales, initial);
        }
        let dots = sums::<R, ROWS, PANEL>(registers, input, self.below, first);
        for (r, dots) in dots.into_iter().enumerate() {
            let pre = scale(registers, dots, input.scales, partial[r]);
            self.new
                .cells(registers, self.panels, self.panel, first + r, pre);
        }
    }
}

/// Sums of one panel, stored as they are.
pub(super) struct StoredSums<'a, R: Registers> {
    pub(super) matrix: &'a PackedMatrix<R>,
    pub(super) panels: usize,
    pub(super) panel: usize,
    pub(super) h: HiddenRows<'a>,
    /// `[rows, panels]`.
    pub(super) sums: &'a mut [PanelInts<R>],
}

impl<R: Registers> RowBlock<R> for StoredSums<'_, R> {
    #[inline(always)]
    fn compute<const ROWS: usize>(&mut self, registers: R, first: usize) {
        let matrix = self.matrix.panel::<PANEL>(self.panel * PANEL);
        let dots = sums::<R, ROWS, PANEL>(registers, matrix, self.h, first);
        for (row, dots) in (first..).zip(dots) {
            let stored = &mut self.sums[row * self.panels + self.panel];
            for (dots, stored) in dots.into_iter().zip(stored) {
                registers.store_ints(dots, stored);
            }
        }
    }
}

/// Loads stored sums.
#[inline(always)]
pub(super) fn load_sums<R: Registers>(registers: R, stored: &PanelInts<R>) -> Sums<R, PANEL> {
    let mut sums = [registers.splat_ints(0); PANEL];
    for (sums, stored) in sums.iter_mut().zip(stored) {
        *sums = registers.load_ints(stored);
    }
    sums
}

/// `fma(float(sum), s', initial)` for one panel of a matrix.
#[inline(always)]
pub(super) fn scale_panel<R: Registers>(
    registers: R,
    matrix: &PackedMatrix<R>,
    panel: usize,
    dots: Sums<R, PANEL>,
    initial: &PanelFloats<R>,
) -> [R::Floats; PANEL] {
    let scales = matrix.panel::<PANEL>(panel * PANEL).scales;
    scale(registers, dots, scales, load(registers, initial))
}

/// Logits of a panel of characters.
struct LogitsPanel<'a, R: Registers, const REGISTERS: usize> {
    weights: &'a PackedWeights<R>,
    /// Its first register.
    register: usize,
    h: HiddenRows<'a>,
    /// `[rows, vocabulary]`.
    logits: &'a mut [f32],
}

impl<R: Registers, const REGISTERS: usize> RowBlock<R> for LogitsPanel<'_, R, REGISTERS> {
    #[inline(always)]
    fn compute<const ROWS: usize>(&mut self, registers: R, first: usize) {
        let matrix = self.weights.output.panel::<REGISTERS>(self.register);
        let mut bias = [registers.splat(0.0); REGISTERS];
        let blocks = &self.weights.output_bias[self.register..];
        for (bias, block) in bias.iter_mut().zip(blocks) {
            *bias = registers.load_floats(block);
        }
        let dots = sums::<R, ROWS, REGISTERS>(registers, matrix, self.h, first);
        let vocabulary = self.weights.shape.vocabulary_size();
        let begin = self.register * R::LANES;
        let end = vocabulary.min(begin + REGISTERS * R::LANES);
        for (row, dots) in (first..).zip(dots) {
            let logits = scale(registers, dots, matrix.scales, bias);
            let row = &mut self.logits[row * vocabulary..][..vocabulary];
            store(registers, logits, &mut row[begin..end]);
        }
    }
}

/// The linear layer: from h of the last LSTM layer to the logits,
/// `[rows, vocabulary]`.
#[inline(always)]
pub(super) fn logits<R: Registers>(
    registers: R,
    weights: &PackedWeights<R>,
    h: HiddenRows<'_>,
    rows: usize,
    logits: &mut [f32],
) {
    let total = weights.output.registers();
    let full = total - total % PANEL;
    for register in (0..full).step_by(PANEL) {
        let mut panel = LogitsPanel::<R, PANEL> {
            weights,
            register,
            h,
            logits,
        };
        for_row_blocks(registers, rows, &mut panel);
    }
    for register in full..total {
        let mut panel = LogitsPanel::<R, 1> {
            weights,
            register,
            h,
            logits,
        };
        for_row_blocks(registers, rows, &mut panel);
    }
}
