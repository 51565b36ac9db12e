//! Draws charts as SVG or PNG files. Each chart is a file in `plot/`; what all
//! of them share is here. A build without the cargo feature `plot` has
//! `plot/disabled.rs` in place of this module.

mod curve;
mod load_chart;
mod loss_chart;
mod loss_plot;
mod theme;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Once;

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::style::{FontStyle, TextStyle, register_font};

pub(crate) use self::load_chart::LoadPlot;
pub(crate) use self::loss_plot::LossPlot;
pub(crate) use self::theme::PlotTheme;
use self::theme::{DARK, LIGHT, Theme};
use crate::failure::Failure;
use crate::output_file::{self, Existing};

/// Font family. The viewer of an SVG file replaces it by a font of its own;
/// the bundled font determines text widths and draws the text of a PNG.
const FONT: &str = "sans-serif";

/// Width of a chart in points.
const WIDTH: u32 = 900;

/// Height of a chart in points.
const HEIGHT: u32 = 540;

/// Pixels per point of a PNG, for high-resolution screens.
const PNG_SCALE: u32 = 2;

/// Maximum number of points of a curve that are marked: with few points, the
/// lines between them are not measurements.
const MAX_MARKED_POINTS: usize = 60;

/// The file that `--plot` names.
#[derive(Clone, Debug)]
pub(crate) struct PlotFile {
    path: PathBuf,
    format: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    Svg,
    Png,
}

/// Something that can be drawn on any surface.
trait Chart {
    /// Draws the chart. Every size is multiplied by `scale`, the number of
    /// pixels per point.
    fn draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, Shift>,
        theme: &Theme,
        scale: u32,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>>;
}

impl FromStr for PlotFile {
    type Err = String;

    /// Parses the value of `--plot`. Fails if the extension is neither `svg`
    /// nor `png`.
    fn from_str(name: &str) -> Result<Self, String> {
        let path = PathBuf::from(name);
        let has = |extension| {
            path.extension()
                .is_some_and(|found| found.eq_ignore_ascii_case(extension))
        };
        let format = if has("svg") {
            Format::Svg
        } else if has("png") {
            Format::Png
        } else {
            return Err("the file name must end in .svg or .png".into());
        };
        Ok(Self { path, format })
    }
}

/// A file that is written again whenever its chart has changed.
struct PlotWriter {
    file: PlotFile,
    theme: PlotTheme,
    /// What happens to an older file of that name when the first chart is
    /// written; later charts replace the earlier ones.
    existing: Existing,
    /// False for a pipe, which takes only the last chart.
    is_replaceable: bool,
}

impl PlotWriter {
    /// Checks that the file can be written. Nothing is written yet.
    fn new(file: PlotFile, theme: PlotTheme, existing: Existing) -> Result<Self, Failure> {
        let is_replaceable = output_file::check(&file.path, existing)?;
        Ok(Self {
            file,
            theme,
            existing,
            is_replaceable,
        })
    }

    /// Draws `chart` to the file, replacing its predecessor atomically. Blocks
    /// until the file is on disk. `is_last` is true for the final chart.
    fn write(&mut self, chart: &impl Chart, is_last: bool) -> Result<(), Failure> {
        if !is_last && !self.is_replaceable {
            return Ok(());
        }
        let PlotFile { path, format } = &self.file;
        let image = render(*format, self.theme, chart).map_err(|reason| Failure::Io {
            action: format!("draw {}", path.display()),
            source: std::io::Error::other(reason),
        })?;
        output_file::write(path, &image, self.existing)?;
        self.existing = Existing::Replace;
        Ok(())
    }
}

/// Draws a chart and returns the content of its file.
fn render(format: Format, theme: PlotTheme, chart: &impl Chart) -> Result<Vec<u8>, String> {
    register_bundled_font();
    let colours = match theme {
        PlotTheme::Auto | PlotTheme::Light => &LIGHT,
        PlotTheme::Dark => &DARK,
    };
    match format {
        Format::Svg => {
            let mut image = String::new();
            draw_on(
                SVGBackend::with_string(&mut image, (WIDTH, HEIGHT)),
                chart,
                colours,
                1,
            )?;
            if theme == PlotTheme::Auto {
                image = theme::following_viewer(&image);
            }
            Ok(image.into_bytes())
        }
        Format::Png => {
            let (width, height) = (WIDTH * PNG_SCALE, HEIGHT * PNG_SCALE);
            let mut pixels = vec![0; (width * height * 3) as usize];
            let backend = BitMapBackend::with_buffer(&mut pixels, (width, height));
            draw_on(backend, chart, colours, PNG_SCALE)?;
            encode_png(&pixels, width, height).map_err(|error| error.to_string())
        }
    }
}

/// Encodes rows of RGB pixels, three bytes each.
fn encode_png(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>, png::EncodingError> {
    let mut image = Vec::new();
    let mut encoder = png::Encoder::new(&mut image, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(image)
}

fn draw_on<DB: DrawingBackend>(
    backend: DB,
    chart: &impl Chart,
    theme: &Theme,
    scale: u32,
) -> Result<(), String> {
    let area = backend.into_drawing_area();
    let drawn = area
        .fill(&theme.background)
        .and_then(|()| chart.draw(&area, theme, scale))
        .and_then(|()| area.present());
    drawn.map_err(|error| error.to_string())
}

/// Returns the style of text of `size` points.
fn text_style(size: u32, theme: &Theme, scale: u32) -> TextStyle<'_> {
    TextStyle::from((FONT, size * scale)).color(&theme.text)
}

/// Registers the font that is part of this program, because the machine may
/// have none (a server, a container).
fn register_bundled_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let registered = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
        assert!(registered.is_ok(), "the bundled font is valid");
    });
}

/// Returns the range of `values` with a margin of 3 %. The range is never
/// empty: a single value gets a margin of 0.5, and without values it is about
/// 0 to 1.
fn padded_range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    let margin = if high > low { (high - low) * 0.03 } else { 0.5 };
    low - margin..high + margin
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::load_chart::LoadChart;
    use super::loss_chart::LossChart;
    use super::*;

    fn losses() -> LossChart {
        let mut losses = LossChart::new("a < b & c", "d");
        for step in 1..=100 {
            losses.add_step(step, 3.0 / step as f64 + 1.0);
        }
        for epoch in 1..=4 {
            let validation = 2.0 + (f64::from(epoch) - 3.0).powi(2);
            losses.add_epoch(epoch, u64::from(epoch) * 25, 2.0, Some(validation));
        }
        losses
    }

    fn write(path: &Path, theme: PlotTheme, chart: &impl Chart) -> Result<(), Failure> {
        let file: PlotFile = path.to_str().unwrap().parse().unwrap();
        PlotWriter::new(file, theme, Existing::Replace)?.write(chart, true)
    }

    fn svg(theme: PlotTheme, chart: &impl Chart) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        write(&path, theme, chart).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::read_to_string(&path).unwrap()
    }

    #[test]
    fn the_extension_chooses_the_format() {
        let format = |name: &str| name.parse::<PlotFile>().map(|file| file.format);
        assert_eq!(format("a/loss.SVG"), Ok(Format::Svg));
        assert_eq!(format("loss.png"), Ok(Format::Png));
        assert!(format("loss.pdf").unwrap_err().contains(".png"));
        assert!(format("loss").is_err());
    }

    #[test]
    fn an_svg_labels_its_curves_its_axes_and_the_best_epoch() {
        let svg = svg(PlotTheme::Auto, &losses());
        for label in [
            "a &lt; b &amp; c",
            "nats per character",
            "bits per character",
            "validation, end of epoch",
            "training, mean of epoch",
            "best: epoch 3, 2.000 (2.89 bits)",
        ] {
            assert!(svg.contains(label), "{label} in {svg}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_single_epoch_is_visible() {
        let mut chart = LossChart::new("t", "");
        chart.add_epoch(1, 25, 2.0, None);
        let svg = svg(PlotTheme::Light, &chart);
        assert!(svg.contains("training, mean of epoch"), "{svg}");
        // The mark of the epoch and the one of its legend.
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        assert!(!svg.contains("reported steps"), "{svg}");
    }

    #[test]
    fn an_svg_follows_the_viewer_or_has_one_theme() {
        let dark = format!("fill=\"#{:02X}", DARK.background.0);
        let auto = svg(PlotTheme::Auto, &losses());
        assert!(auto.contains("@media (prefers-color-scheme: dark)"));
        assert!(auto.contains("fill=\"#FFFFFF\"") && !auto.contains(&dark));
        let light = svg(PlotTheme::Light, &losses());
        assert!(!light.contains("<style>") && !light.contains(&dark));
        let dark_only = svg(PlotTheme::Dark, &losses());
        assert!(dark_only.contains(&dark) && !dark_only.contains("#FFFFFF"));
        assert!(!dark_only.contains("#000000"), "{dark_only}");
    }

    #[test]
    fn a_png_has_two_pixels_per_point_and_needs_no_installed_font() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.png");
        for (theme, corner) in [
            (PlotTheme::Auto, LIGHT.background),
            (PlotTheme::Dark, DARK.background),
        ] {
            write(&path, theme, &losses()).unwrap();
            let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
            let mut reader = png::Decoder::new(file).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size()];
            let info = reader.next_frame(&mut pixels).unwrap();
            let size = (WIDTH * PNG_SCALE, HEIGHT * PNG_SCALE);
            assert_eq!((info.width, info.height), size);
            assert_eq!(pixels[..3], [corner.0, corner.1, corner.2]);
        }
    }

    #[test]
    fn a_chart_without_points_can_be_drawn() {
        let empty = svg(PlotTheme::Auto, &LossChart::new("nothing yet", ""));
        assert!(!empty.contains("NaN"), "{empty}");
        svg(PlotTheme::Auto, &LoadChart::default());
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let failure = write(
            Path::new("/nonexistent/loss.svg"),
            PlotTheme::Auto,
            &losses(),
        )
        .unwrap_err();
        assert!(failure.to_string().contains("/nonexistent/loss.svg"));
    }
}
