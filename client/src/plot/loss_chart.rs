//! Draws the losses of a training over its steps.

use plotters::backend::DrawingBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind};
use plotters::element::{Circle, EmptyElement, PathElement, Text};
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, IntoFont, RGBColor, TextStyle, WHITE};

use super::curve::Curve;
use super::{Chart, DARK_BLUE, FONT, ORANGE, PALE_BLUE, padded_range};
use crate::display;

/// The losses of a training so far, in nats per character.
pub(super) struct LossChart {
    title: String,
    steps: Curve,
    epochs: Curve,
    validation: Curve,
    best: Option<BestEpoch>,
}

/// The epoch with the lowest validation loss so far.
#[derive(Clone, Copy)]
struct BestEpoch {
    epoch: u32,
    step: u64,
    loss: f64,
}

impl LossChart {
    /// Creates a chart without points.
    pub(super) fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            steps: Curve::new(),
            epochs: Curve::new(),
            validation: Curve::new(),
            best: None,
        }
    }

    /// Changes the title.
    pub(super) fn set_title(&mut self, title: impl Into<String>) {
        self.title = title.into();
    }

    /// Adds the training loss of a step.
    pub(super) fn add_step(&mut self, step: u64, loss: f64) {
        self.steps.push(step, loss);
    }

    /// Adds the losses of an epoch that ended at `step`.
    pub(super) fn add_epoch(&mut self, epoch: u32, step: u64, train: f64, validation: Option<f64>) {
        self.epochs.push(step, train);
        let Some(loss) = validation else { return };
        self.validation.push(step, loss);
        // A resumed training reports its last epoch again.
        let better = |best: BestEpoch| loss < best.loss || best.epoch == epoch;
        if loss.is_finite() && self.best.is_none_or(better) {
            self.best = Some(BestEpoch { epoch, step, loss });
        }
    }

    fn curves(&self) -> [(&Curve, &'static str, RGBColor, u32); 3] {
        [
            (&self.steps, "training (steps)", PALE_BLUE, 1),
            (&self.epochs, "training (epoch mean)", DARK_BLUE, 2),
            (&self.validation, "validation", ORANGE, 2),
        ]
    }
}

impl Chart for LossChart {
    fn draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, Shift>,
        scale: u32,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let font = |size: u32| (FONT, size * scale).into_font();
        let points = || {
            let curves = self.curves();
            curves.into_iter().flat_map(|curve| curve.0.points())
        };
        let x_range = padded_range(points().map(|point| point.0));
        let y_range = padded_range(points().map(|point| point.1));
        let bits = display::bits(y_range.start)..display::bits(y_range.end);
        let mut chart = ChartBuilder::on(area)
            .margin(12 * scale)
            .caption(&self.title, font(17))
            .x_label_area_size(42 * scale)
            .y_label_area_size(56 * scale)
            .right_y_label_area_size(56 * scale)
            .build_cartesian_2d(x_range.clone(), y_range)?
            .set_secondary_coord(x_range.clone(), bits);
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.12))
            .label_style(font(12))
            .axis_desc_style(font(13))
            .x_desc("step")
            .y_desc("loss, nats per character")
            .x_label_formatter(&step_label)
            .y_label_formatter(&loss_label)
            .draw()?;
        chart
            .configure_secondary_axes()
            .label_style(font(12))
            .axis_desc_style(font(13))
            .y_desc("bits per character")
            .y_label_formatter(&loss_label)
            .draw()?;
        for (curve, name, colour, width) in self.curves() {
            if curve.points().is_empty() {
                continue;
            }
            let style = colour.stroke_width(width * scale);
            let length = (18 * scale) as i32;
            chart
                .draw_series(LineSeries::new(curve.points().iter().copied(), style))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + length, y)], style));
        }
        if let Some(best) = self.best {
            let middle = (x_range.start + x_range.end) / 2.0;
            let mark = best.mark(best.step as f64 > middle, scale);
            let at = EmptyElement::at((best.step as f64, best.loss));
            chart.draw_series([at + mark.0 + mark.1])?;
        }
        if points().next().is_some() {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .margin(10 * scale)
                .legend_area_size(24 * scale)
                .background_style(WHITE.mix(0.85))
                .label_font(font(12))
                .draw()?;
        }
        Ok(())
    }
}

/// A dot, relative to a point of the chart.
type Dot = Circle<(i32, i32), u32>;

/// A label, relative to a point of the chart.
type Label = Text<'static, (i32, i32), String>;

impl BestEpoch {
    /// Returns a dot and a label above it, which extends to the left if the
    /// dot is in the right half of the chart.
    fn mark(self, is_right: bool, scale: u32) -> (Dot, Label) {
        let (side, offset) = if is_right {
            (HPos::Right, -4)
        } else {
            (HPos::Left, 4)
        };
        let style = TextStyle::from((FONT, 12 * scale).into_font())
            .pos(Pos::new(side, VPos::Bottom))
            .color(&ORANGE);
        let position = (offset * scale as i32, -7 * scale as i32);
        (
            Circle::new((0, 0), 4 * scale, ORANGE.filled()),
            Text::new(self.label(), position, style),
        )
    }

    fn label(self) -> String {
        format!(
            "best: epoch {}, {:.3} ({:.2} bits)",
            self.epoch,
            self.loss,
            display::bits(self.loss)
        )
    }
}

/// Formats a tick of the step axis. The margin of the axis may extend below
/// zero, where no step is.
fn step_label(value: &f64) -> String {
    if *value < 0.0 {
        String::new()
    } else {
        display::count(value.round() as u64)
    }
}

/// Formats a tick of the loss axis; three decimals distinguish any two ticks.
fn loss_label(value: &f64) -> String {
    ((value * 1e3).round() / 1e3).to_string()
}
