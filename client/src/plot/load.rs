//! The picture of a load test: how fast text comes, over the number of
//! sessions at a time.

use plotters::backend::DrawingBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::coord::ranged1d::Ranged;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind};
use plotters::element::{Circle, PathElement};
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, IntoFont, RGBColor, WHITE};

use super::{DARK_BLUE, FONT, ORANGE, PALE_BLUE, PALE_ORANGE, Picture};
use crate::human;

/// Figures of one number of sessions. Times in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) sessions: u32,
    pub(crate) chars_per_second: f64,
    pub(crate) first_p50: f64,
    pub(crate) first_p99: f64,
    pub(crate) between_p50: f64,
    pub(crate) between_p99: f64,
}

/// The figures of a load test, in the order of their measurement.
pub(crate) struct LoadChart {
    rows: Vec<Figures>,
}

/// A line of the picture: its name, its colour, and its value in each row.
type Series = (&'static str, RGBColor, fn(&Figures) -> f64);

const THROUGHPUT: [Series; 1] = [("", DARK_BLUE, |row| row.chars_per_second)];

const LATENCY: [Series; 4] = [
    ("first character, p99", ORANGE, |row| row.first_p99),
    ("first character, p50", PALE_ORANGE, |row| row.first_p50),
    ("between characters, p99", DARK_BLUE, |row| row.between_p99),
    ("between characters, p50", PALE_BLUE, |row| row.between_p50),
];

/// Shortest time that is drawn: times are on a logarithmic scale, which has
/// no zero.
const SHORTEST: f64 = 1e-6;

impl LoadChart {
    pub(crate) fn new(rows: Vec<Figures>) -> Self {
        Self { rows }
    }

    /// Draws `series` into one half of the picture. The numbers of sessions
    /// are an equal step apart, whatever they are: usually each is a multiple
    /// of the one before.
    fn panel<DB, Y>(
        &self,
        area: &DrawingArea<DB, Shift>,
        scale: u32,
        up: Y,
        (title, label): (&str, &str),
        series: &[Series],
        words: &dyn Fn(&f64) -> String,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>>
    where
        DB: DrawingBackend,
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let font = |size: u32| (FONT, size * scale).into_font();
        let across = -0.5..self.rows.len().max(1) as f64 - 0.5;
        let mut chart = ChartBuilder::on(area)
            .margin(10 * scale)
            .caption(title, font(15))
            .x_label_area_size(38 * scale)
            .y_label_area_size(76 * scale)
            .build_cartesian_2d(across, up)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.12))
            .label_style(font(12))
            .axis_desc_style(font(13))
            .x_desc("sessions at a time")
            .y_desc(label)
            .x_labels(2 * self.rows.len() + 1)
            .x_label_formatter(&|place| self.sessions_at(*place))
            .y_label_formatter(words)
            .draw()?;
        let length = (18 * scale) as i32;
        for (name, colour, value) in series {
            let (colour, value) = (*colour, *value);
            let places = self.rows.iter().enumerate();
            let points: Vec<_> = places
                .map(|(index, row)| (index as f64, value(row)))
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
        if series.len() > 1 && !self.rows.is_empty() {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .margin(10 * scale)
                .legend_area_size(24 * scale)
                .background_style(WHITE.mix(0.85))
                .label_font(font(12))
                .draw()?;
        }
        Ok(())
    }

    /// The label below a place of the axis: the number of sessions there.
    fn sessions_at(&self, place: f64) -> String {
        let whole = place.round();
        if (place - whole).abs() > 1e-6 || whole < 0.0 {
            return String::new();
        }
        let row = self.rows.get(whole as usize);
        row.map_or_else(String::new, |row| human::count(row.sessions.into()))
    }

    /// The highest value of some series.
    fn highest(&self, series: &[Series]) -> f64 {
        let values = self
            .rows
            .iter()
            .flat_map(|row| series.iter().map(|line| (line.2)(row)));
        values.filter(|value| value.is_finite()).fold(0.0, f64::max)
    }

    /// The lowest time of some series.
    fn lowest(&self, series: &[Series]) -> f64 {
        let values = self
            .rows
            .iter()
            .flat_map(|row| series.iter().map(|line| (line.2)(row)));
        values.fold(f64::INFINITY, f64::min)
    }
}

impl Picture for LoadChart {
    fn draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, Shift>,
        scale: u32,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let (above, below) = area.split_vertically(area.dim_in_pixel().1 * 2 / 5);
        let most = self.highest(&THROUGHPUT);
        let throughput = 0.0..if most > 0.0 { most * 1.1 } else { 1.0 };
        let words = ("Throughput", "characters a second");
        self.panel(&above, scale, throughput, words, &THROUGHPUT, &|value| {
            human::count(value.round() as u64)
        })?;
        let longest = self.highest(&LATENCY).max(SHORTEST * 10.0);
        let shortest = self.lowest(&LATENCY).clamp(SHORTEST, longest / 10.0);
        // The upper third is for the names of the lines.
        let room = (longest / shortest).sqrt().max(6.0);
        let times = (shortest * 0.7..longest * room).log_scale();
        let words = ("Latency", "time");
        self.panel(&below, scale, times, words, &LATENCY, &|value| {
            human::seconds(*value)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(sessions: u32, first_p50: f64) -> Figures {
        Figures {
            sessions,
            chars_per_second: 3000.0 * f64::from(sessions),
            first_p50,
            first_p99: first_p50 * 3.0,
            between_p50: first_p50 / 5.0,
            between_p99: first_p50 / 2.0,
        }
    }

    #[test]
    fn each_number_of_sessions_has_its_place_and_each_line_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench.svg");
        let rows = vec![row(1, 0.0), row(8, 0.002), row(1024, 0.05)];
        crate::plot::write(&path, &LoadChart::new(rows)).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for word in [
            "\n1,024\n",
            "\n8\n",
            "between characters, p99",
            "Throughput",
        ] {
            assert!(svg.contains(word), "{word} in {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
