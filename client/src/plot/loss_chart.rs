//! Draws the losses of a training over its steps.

use std::collections::BTreeMap;

use plotters::backend::DrawingBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind};
use plotters::element::{Circle, EmptyElement, PathElement};
use plotters::series::LineSeries;
use plotters::style::{Color, RGBColor, TRANSPARENT};

use super::curve::Curve;
use super::theme::Theme;
use super::{Chart, MAX_MARKED_POINTS, padded_range, text_style};
use crate::display;

/// The losses of a training so far, in nats per character.
pub(super) struct LossChart {
    title: String,
    subtitle: String,
    /// The losses of the steps that the server has reported.
    steps: Curve,
    /// The mean of each epoch, at its middle.
    epochs: Curve,
    /// The validation loss, at the end of each epoch.
    validation: Curve,
    best: Option<BestEpoch>,
    /// The last step of each epoch.
    ends: BTreeMap<u32, u64>,
}

/// The epoch with the lowest validation loss so far.
#[derive(Clone, Copy)]
struct BestEpoch {
    epoch: u32,
    step: u64,
    loss: f64,
}

/// A curve with its name, colour, width of its line and radius of its marks.
type Drawn<'c> = (&'c Curve, &'static str, RGBColor, u32, u32);

impl LossChart {
    /// Creates a chart without points.
    pub(super) fn new(title: impl Into<String>, subtitle: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            subtitle: subtitle.into(),
            steps: Curve::new(),
            epochs: Curve::new(),
            validation: Curve::new(),
            best: None,
            ends: BTreeMap::new(),
        }
    }

    /// Changes the titles.
    pub(super) fn set_titles(&mut self, title: String, subtitle: String) {
        (self.title, self.subtitle) = (title, subtitle);
    }

    /// Adds the training loss of a step.
    pub(super) fn add_step(&mut self, step: u64, loss: f64) {
        self.steps.push(step as f64, loss);
    }

    /// Adds the losses of an epoch that ended at `step`.
    pub(super) fn add_epoch(&mut self, epoch: u32, step: u64, train: f64, validation: Option<f64>) {
        self.ends.insert(epoch, step);
        let before = epoch.saturating_sub(1);
        let start = match self.ends.get(&before) {
            Some(end) => *end,
            // All epochs have the same number of steps.
            None => step * u64::from(before) / u64::from(epoch.max(1)),
        };
        self.epochs.push((start + step) as f64 / 2.0, train);
        let Some(loss) = validation else { return };
        self.validation.push(step as f64, loss);
        // A resumed training reports its last epoch again.
        let better = |best: BestEpoch| loss < best.loss || best.epoch == epoch;
        if loss.is_finite() && self.best.is_none_or(better) {
            self.best = Some(BestEpoch { epoch, step, loss });
        }
    }

    fn curves(&self, theme: &Theme) -> [Drawn<'_>; 3] {
        [
            (
                &self.steps,
                "training, reported steps",
                theme.pale_blue,
                1,
                2,
            ),
            (&self.epochs, "training, mean of epoch", theme.blue, 2, 3),
            (
                &self.validation,
                "validation, end of epoch",
                theme.orange,
                2,
                3,
            ),
        ]
    }
}

impl Chart for LossChart {
    fn draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, Shift>,
        theme: &Theme,
        scale: u32,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let text = |size| text_style(size, theme, scale);
        let points = || {
            let curves = self.curves(theme);
            curves.into_iter().flat_map(|curve| curve.0.points())
        };
        let x_range = padded_range(points().map(|point| point.0));
        let y_range = padded_range(points().map(|point| point.1));
        let bits = display::bits(y_range.start)..display::bits(y_range.end);
        let area = area.margin(8 * scale, 0, 0, 0);
        let area = area.titled(&self.title, text(17))?;
        let area = area.titled(&self.subtitle, text(12))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12 * scale)
            .x_label_area_size(42 * scale)
            .y_label_area_size(56 * scale)
            .right_y_label_area_size(56 * scale)
            .build_cartesian_2d(x_range.clone(), y_range)?
            .set_secondary_coord(x_range, bits);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(theme.text.mix(0.12))
            .axis_style(theme.text)
            .label_style(text(12))
            .axis_desc_style(text(13))
            .x_desc("step")
            .y_desc("loss, nats per character")
            .x_label_formatter(&step_label)
            .y_label_formatter(&loss_label)
            .draw()?;
        chart
            .configure_secondary_axes()
            .axis_style(theme.text)
            .label_style(text(12))
            .axis_desc_style(text(13))
            .y_desc("bits per character")
            .y_label_formatter(&loss_label)
            .draw()?;
        let (middle, length) = ((9 * scale) as i32, (18 * scale) as i32);
        for (curve, name, colour, width, radius) in self.curves(theme) {
            let points = curve.points();
            if points.is_empty() {
                continue;
            }
            let (style, radius) = (colour.stroke_width(width * scale), radius * scale);
            let is_marked = points.len() <= MAX_MARKED_POINTS;
            let mark = if is_marked { radius } else { 0 };
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(name)
                .legend(move |(x, y)| {
                    EmptyElement::at((x, y))
                        + PathElement::new([(0, 0), (length, 0)], style)
                        + Circle::new((middle, 0), mark, colour.filled())
                });
            if is_marked {
                let marks = points.iter();
                chart.draw_series(marks.map(|at| Circle::new(*at, radius, colour.filled())))?;
            }
        }
        if let Some(best) = self.best {
            let colour = theme.orange;
            let at = (best.step as f64, best.loss);
            chart
                .draw_series([Circle::new(at, 6 * scale, colour.stroke_width(2 * scale))])?
                .label(best.label())
                .legend(move |(x, y)| {
                    Circle::new((x + middle, y), 6 * scale, colour.stroke_width(2 * scale))
                });
        }
        if points().next().is_some() {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .margin(10 * scale)
                .legend_area_size(24 * scale)
                .background_style(theme.background.mix(0.85))
                .label_font(text(12))
                .draw()?;
        }
        Ok(())
    }
}

impl BestEpoch {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_an_epoch_is_at_its_middle_and_its_validation_loss_at_its_end() {
        let mut chart = LossChart::new("t", "");
        for epoch in 1..=3 {
            chart.add_epoch(epoch, 20 * u64::from(epoch), 3.0, Some(2.5));
        }
        assert_eq!(
            chart.epochs.points(),
            [(10.0, 3.0), (30.0, 3.0), (50.0, 3.0)]
        );
        let ends: Vec<f64> = chart
            .validation
            .points()
            .iter()
            .map(|point| point.0)
            .collect();
        assert_eq!(ends, [20.0, 40.0, 60.0]);
        // The epochs before were not seen.
        let mut resumed = LossChart::new("t", "");
        resumed.add_epoch(4, 80, 3.0, None);
        assert_eq!(resumed.epochs.points(), [(70.0, 3.0)]);
    }
}
