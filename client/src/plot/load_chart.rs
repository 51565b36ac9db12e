//! Draws the results of a load test: throughput and latency over the number of
//! concurrent streams.

use plotters::backend::DrawingBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::coord::ranged1d::Ranged;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind};
use plotters::element::{Circle, PathElement};
use plotters::series::LineSeries;
use plotters::style::{Color, RGBColor, TRANSPARENT};

use super::theme::{PlotTheme, Theme};
use super::{Chart, PlotFile, PlotWriter, text_style};
use crate::display;
use crate::failure::Failure;
use crate::load_test::LoadSummary;
use crate::output_file::Existing;

/// A plot of a load test that grows with each measurement.
pub(crate) struct LoadPlot {
    writer: PlotWriter,
    chart: LoadChart,
}

/// The measurements of a load test, in the order in which they were made.
#[derive(Default)]
pub(super) struct LoadChart {
    title: String,
    points: Vec<LoadPoint>,
}

/// The measurement with one number of streams.
#[derive(Clone, Copy, Debug)]
struct LoadPoint {
    streams: u32,
    chars_per_second: f64,
    first_p50_seconds: f64,
    first_p99_seconds: f64,
    between_p50_seconds: f64,
    between_p99_seconds: f64,
}

/// A line of the chart: its name, its colour, and its value at a point.
type Series = (&'static str, fn(&Theme) -> RGBColor, fn(&LoadPoint) -> f64);

const THROUGHPUT: [Series; 1] = [("", |theme| theme.blue, |point| point.chars_per_second)];

/// The latencies, in seconds.
const LATENCY: [Series; 4] = [
    (
        "first character, p99",
        |theme| theme.orange,
        |point| point.first_p99_seconds,
    ),
    (
        "first character, p50",
        |theme| theme.pale_orange,
        |point| point.first_p50_seconds,
    ),
    (
        "between characters, p99",
        |theme| theme.blue,
        |point| point.between_p99_seconds,
    ),
    (
        "between characters, p50",
        |theme| theme.pale_blue,
        |point| point.between_p50_seconds,
    ),
];

/// A unit of time: its name, and its length in seconds.
type TimeUnit = (&'static str, f64);

/// The vertical axis of one half of the chart.
struct YAxis<'a, Range> {
    range: Range,
    label: &'a str,
    /// Values are divided by this.
    unit: f64,
    /// Formats a tick.
    tick: &'a dyn Fn(&f64) -> String,
}

const TIME_UNITS: [TimeUnit; 3] = [("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)];

/// Lower limit of the time axis in seconds: the axis is logarithmic and has no
/// zero.
const MIN_SECONDS: f64 = 1e-6;

impl LoadPlot {
    /// Creates a plot without measurements, and checks that its file can be
    /// written. Nothing is written yet.
    pub(crate) fn new(
        file: PlotFile,
        theme: PlotTheme,
        existing: Existing,
    ) -> Result<Self, Failure> {
        Ok(Self {
            writer: PlotWriter::new(file, theme, existing)?,
            chart: LoadChart::default(),
        })
    }

    /// Sets the title: what was measured, and where.
    pub(crate) fn set_title(&mut self, title: String) {
        self.chart.title = title;
    }

    /// Adds the measurement with one number of streams.
    pub(crate) fn add(&mut self, streams: u32, summary: &LoadSummary) {
        self.chart.points.push(LoadPoint {
            streams,
            chars_per_second: summary.chars_per_second,
            first_p50_seconds: summary.first_microseconds.p50 / 1e6,
            first_p99_seconds: summary.first_microseconds.p99 / 1e6,
            between_p50_seconds: summary.between_microseconds.p50 / 1e6,
            between_p99_seconds: summary.between_microseconds.p99 / 1e6,
        });
    }

    /// Writes the measurements so far to the file; a pipe receives only the
    /// last plot (`is_last`). Blocks until the file is on disk.
    pub(crate) fn write(&mut self, is_last: bool) -> Result<(), Failure> {
        self.writer.write(&self.chart, is_last)
    }
}

impl LoadChart {
    /// Draws `series` on one half of the chart. A value below the axis is drawn at
    /// its lower end. The points are equally spaced whatever their numbers of
    /// streams, because usually each is a multiple of the previous one.
    fn panel<DB, Y>(
        &self,
        area: &DrawingArea<DB, Shift>,
        theme: &Theme,
        scale: u32,
        y_axis: YAxis<'_, Y>,
        series: &[Series],
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>>
    where
        DB: DrawingBackend,
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let text = |size| text_style(size, theme, scale);
        let x_range = -0.5..self.points.len().max(1) as f64 - 0.5;
        let mut chart = ChartBuilder::on(area)
            .margin(10 * scale)
            .x_label_area_size(38 * scale)
            .y_label_area_size(76 * scale)
            .build_cartesian_2d(x_range, y_axis.range)?;
        let lowest = chart.y_range().start;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(theme.text.mix(0.12))
            .axis_style(theme.text)
            .label_style(text(12))
            .axis_desc_style(text(13))
            .x_desc("concurrent streams")
            .y_desc(y_axis.label)
            .x_labels(2 * self.points.len() + 1)
            .x_label_formatter(&|x| self.x_tick(*x))
            .y_label_formatter(y_axis.tick)
            .draw()?;
        let length = (18 * scale) as i32;
        for (name, colour, value) in series {
            let (colour, value) = (colour(theme), *value);
            let points = self.points.iter().enumerate();
            let points: Vec<_> = points
                .map(|(index, point)| (index as f64, (value(point) / y_axis.unit).max(lowest)))
                .collect();
            let line = colour.stroke_width(2 * scale);
            let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), line))?;
            if !name.is_empty() {
                drawn
                    .label(*name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + length, y)], line));
            }
            let marks = points.into_iter();
            chart.draw_series(marks.map(|at| Circle::new(at, 3 * scale, colour.filled())))?;
        }
        if series.len() > 1 && !self.points.is_empty() {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .margin(10 * scale)
                .legend_area_size(24 * scale)
                .background_style(theme.background.mix(0.85))
                .label_font(text(12))
                .draw()?;
        }
        Ok(())
    }

    /// Formats a tick of the x axis: the number of streams of the point at
    /// `x`, or nothing between two points.
    fn x_tick(&self, x: f64) -> String {
        let index = x.round();
        if (x - index).abs() > 1e-6 || index < 0.0 {
            return String::new();
        }
        let point = self.points.get(index as usize);
        point.map_or_else(String::new, |point| display::count(point.streams.into()))
    }

    /// Returns the highest value of `series`, or 0 if there is none.
    fn max(&self, series: &[Series]) -> f64 {
        let finite = self.values(series).filter(|value| value.is_finite());
        finite.fold(0.0, f64::max)
    }

    /// Returns the lowest value of `series`, or infinity if there is none.
    fn min(&self, series: &[Series]) -> f64 {
        self.values(series).fold(f64::INFINITY, f64::min)
    }

    fn values(&self, series: &[Series]) -> impl Iterator<Item = f64> {
        let points = self.points.iter();
        points.flat_map(|point| series.iter().map(|(_, _, value)| value(point)))
    }
}

impl Chart for LoadChart {
    fn draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, Shift>,
        theme: &Theme,
        scale: u32,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let area = area.margin(8 * scale, 0, 0, 0);
        let area = area.titled(&self.title, text_style(15, theme, scale))?;
        let (above, below) = area.split_vertically(area.dim_in_pixel().1 * 2 / 5);
        let max = self.max(&THROUGHPUT);
        let throughput = YAxis {
            range: 0.0..if max > 0.0 { max * 1.1 } else { 1.0 },
            label: "characters per second",
            unit: 1.0,
            tick: &|value| display::count(value.round() as u64),
        };
        self.panel(&above, theme, scale, throughput, &THROUGHPUT)?;
        let max = self.max(&LATENCY).max(MIN_SECONDS * 10.0);
        let min = self.min(&LATENCY).clamp(MIN_SECONDS, max / 10.0);
        // The legend needs the upper third of the panel.
        let legend_factor = (max / min).sqrt().max(6.0);
        let (name, unit) = time_unit(max);
        let latency = YAxis {
            range: (min * 0.7 / unit..max * legend_factor / unit).log_scale(),
            label: &format!("latency in {name}"),
            unit,
            tick: &|value| display::significant(*value),
        };
        self.panel(&below, theme, scale, latency, &LATENCY)
    }
}

/// Returns the unit in which the largest latency is at least 1.
fn time_unit(max_seconds: f64) -> TimeUnit {
    let fits = |unit: &&TimeUnit| max_seconds >= unit.1;
    *TIME_UNITS.iter().find(fits).unwrap_or(&TIME_UNITS[2])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn point(streams: u32, first_p50_seconds: f64) -> LoadPoint {
        LoadPoint {
            streams,
            chars_per_second: 3000.0 * f64::from(streams),
            first_p50_seconds,
            first_p99_seconds: first_p50_seconds * 3.0,
            between_p50_seconds: first_p50_seconds / 5.0,
            between_p99_seconds: first_p50_seconds / 2.0,
        }
    }

    #[test]
    fn each_number_of_streams_has_a_tick_and_each_line_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench.svg");
        let points = vec![point(1, 0.0), point(8, 0.002), point(1024, 0.05)];
        let file: PlotFile = path.to_str().unwrap().parse().unwrap();
        let mut writer = PlotWriter::new(file, PlotTheme::Light, Existing::Keep).unwrap();
        let title = "Load test of m@1".into();
        writer.write(&LoadChart { title, points }, true).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for label in [
            "\n1,024\n",
            "\n8\n",
            "between characters, p99",
            "Load test of m@1",
            "characters per second",
            "latency in ms",
        ] {
            assert!(svg.contains(label), "{label} in {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        // One unit per axis, which only its label names.
        assert_eq!(svg.matches(" ms\n").count(), 1, "{svg}");
        assert!(!svg.contains("µs\n"), "{svg}");
        // Latencies of zero are within the picture.
        for line in svg.lines().filter(|line| line.starts_with("<polyline")) {
            let points = line
                .split("points=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            for point in points.split_whitespace() {
                let y: f64 = point.split(',').nth(1).unwrap().parse().unwrap();
                assert!((0.0..500.0).contains(&y), "{line}");
            }
        }
    }

    #[test]
    fn a_time_has_the_unit_of_the_largest_one() {
        assert_eq!(time_unit(150.0).0, "s");
        assert_eq!(time_unit(0.25).0, "ms");
        assert_eq!(time_unit(0.0003).0, "µs");
        assert_eq!(time_unit(0.0).0, "µs");
    }
}
