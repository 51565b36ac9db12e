//! Draws the loss of a training as an SVG picture. Which points there are is
//! collected in `progress`; nothing here reads or writes a file.

use std::fmt::Write;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Ticks that an axis has about.
const TICKS: f64 = 6.0;

/// Most points of a curve: more than there are pixels would only make the
/// file large.
const MOST_POINTS: usize = 2000;

/// A line through points of (step, loss).
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    name: &'static str,
    colour: &'static str,
    points: Vec<(f64, f64)>,
    /// One of so many points is kept.
    stride: u64,
    offered: u64,
}

impl Curve {
    pub(crate) fn new(name: &'static str, colour: &'static str) -> Self {
        Self {
            name,
            colour,
            points: Vec::new(),
            stride: 1,
            offered: 0,
        }
    }

    /// Adds a point. When there are too many, every second one goes.
    pub(crate) fn push(&mut self, step: u64, loss: f64) {
        self.offered += 1;
        if !loss.is_finite() || !self.offered.is_multiple_of(self.stride) {
            return;
        }
        self.points.push((step as f64, loss));
        if self.points.len() > MOST_POINTS {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
    }
}

/// One axis: the values it spans, and where they lie in the picture.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Spans `values` and a little more; a lone value gets room around it.
    fn spanning(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let room = if high > low { (high - low) * 0.03 } else { 0.5 };
        Self {
            low: low - room,
            high: high + room,
            from,
            to,
        }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round values within the axis, 1, 2 or 5 times a power of ten apart.
    fn ticks(&self) -> Vec<f64> {
        let raw = (self.high - self.low) / TICKS;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|step| *step >= raw)
            .unwrap_or(raw);
        let first = (self.low / step).ceil();
        (0..)
            .map(|index| (first + f64::from(index)) * step)
            .take_while(|value| *value <= self.high)
            .collect()
    }
}

/// The picture of `curves`, as the text of an SVG file.
pub(crate) fn svg(title: &str, curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let across = Axis::spanning(points().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let up = Axis::spanning(points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    draw_axes(&mut svg, &across, &up);
    for (index, curve) in curves.iter().enumerate() {
        draw_curve(&mut svg, curve, &across, &up, index);
    }
    svg.push_str("</svg>\n");
    svg
}

// Writing to a String cannot fail: the results below are left alone.

fn draw_axes(svg: &mut String, across: &Axis, up: &Axis) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for tick in across.ticks().into_iter().filter(|tick| *tick >= 0.0) {
        let x = across.place(tick);
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {bottom}V{TOP}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            bottom + 18.0
        );
    }
    for tick in up.ticks() {
        let y = up.place(tick);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            // Three digits tell any two ticks of a loss apart.
            (tick * 1e3).round() / 1e3
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">step; loss in nats per character</text>",
        HEIGHT - 12.0
    );
}

fn draw_curve(svg: &mut String, curve: &Curve, across: &Axis, up: &Axis, index: usize) {
    let colour = curve.colour;
    let places: Vec<String> = curve
        .points
        .iter()
        .map(|(step, loss)| format!("{:.1},{:.1}", across.place(*step), up.place(*loss)))
        .collect();
    if places.is_empty() {
        return;
    }
    let _ = writeln!(
        svg,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>",
        places.join(" "),
        WIDTH - RIGHT - 8.0,
        TOP + 16.0 * (index + 1) as f64,
        curve.name
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        let axis = Axis {
            low: 0.0,
            high: 580.0,
            from: 0.0,
            to: 1.0,
        };
        assert_eq!(axis.ticks(), [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]);
    }

    #[test]
    fn a_long_curve_is_thinned_from_end_to_end() {
        let mut curve = Curve::new("loss", "black");
        for step in 0..100_000 {
            curve.push(step, 1.0);
        }
        assert!(curve.points.len() <= MOST_POINTS);
        assert!(curve.points.first().is_some_and(|point| point.0 < 100.0));
        assert!(curve.points.last().is_some_and(|point| point.0 > 99_000.0));
    }

    #[test]
    fn a_picture_without_points_is_still_a_picture() {
        let picture = svg("a < b", &[Curve::new("loss", "black")]);
        assert!(picture.contains("a &lt; b"));
        assert!(picture.ends_with("</svg>\n"));
        assert!(!picture.contains("NaN"));
    }
}
