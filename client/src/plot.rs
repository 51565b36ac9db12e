//! Pictures of numbers, as SVG or PNG: what they have in common. Each picture
//! is a file in `plot/`. Which numbers there are is collected by the commands.

mod curve;
pub(crate) mod load;
pub(crate) mod losses;

use std::path::{Path, PathBuf};
use std::sync::Once;

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::style::{FontStyle, RGBColor, WHITE, register_font};

pub(crate) use self::curve::Curve;
use crate::exit::Failure;

/// The name that text is drawn under. In an SVG file it asks the viewer for a
/// font of its own; widths, and all text of a PNG, come from the font below.
const FONT: &str = "sans-serif";

const WIDTH: u32 = 900;
const HEIGHT: u32 = 540;

/// A PNG is made for screens with two pixels to the point.
const PNG_SCALE: u32 = 2;

const DARK_BLUE: RGBColor = RGBColor(31, 78, 150);
const PALE_BLUE: RGBColor = RGBColor(180, 200, 226);
const ORANGE: RGBColor = RGBColor(200, 80, 30);
const PALE_ORANGE: RGBColor = RGBColor(236, 178, 148);

/// A picture that can be drawn on any surface. `scale` is the number of
/// pixels to the point: every size is multiplied by it.
pub(crate) trait Picture {
    /// Draws it.
    fn draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, Shift>,
        scale: u32,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>>;
}

/// The name of a picture, in one of the formats that are drawn.
pub(crate) fn picture_file(name: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(name);
    if is(&path, "svg") || is(&path, "png") {
        Ok(path)
    } else {
        Err("pictures are drawn as SVG or PNG; name a file that ends in .svg or .png".into())
    }
}

/// Draws `picture` into the file `path`, which `picture_file` has accepted. A
/// viewer never sees half a picture: it is drawn beside the file first.
pub(crate) fn write(path: &Path, picture: &impl Picture) -> Result<(), Failure> {
    prepare_font();
    let failed = |reason: std::io::Error| Failure::Io {
        what: format!("write {}", path.display()),
        source: reason,
    };
    let extension = if is(path, "png") { "png" } else { "svg" };
    let beside = path.with_extension(format!("partial.{extension}"));
    let drawn = if extension == "png" {
        let size = (WIDTH * PNG_SCALE, HEIGHT * PNG_SCALE);
        draw_on(BitMapBackend::new(&beside, size), picture, PNG_SCALE)
    } else {
        draw_on(SVGBackend::new(&beside, (WIDTH, HEIGHT)), picture, 1)
    };
    let kept = drawn.and_then(|()| std::fs::rename(&beside, path));
    if kept.is_err() {
        // Nothing is there where the drawing did not begin.
        let _ = std::fs::remove_file(&beside);
    }
    kept.map_err(failed)
}

fn draw_on<DB: DrawingBackend>(
    backend: DB,
    picture: &impl Picture,
    scale: u32,
) -> std::io::Result<()> {
    let area = backend.into_drawing_area();
    let drawn = area
        .fill(&WHITE)
        .and_then(|()| picture.draw(&area, scale))
        .and_then(|()| area.present());
    drawn.map_err(|error| std::io::Error::other(error.to_string()))
}

/// Gives the drawing library its font. It is part of this program, because
/// the machine may have none (a server, a container).
fn prepare_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let known = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
        assert!(known.is_ok(), "the font in this program is a font");
    });
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension()
        .is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The lowest and the highest of `values`, with a little room around them;
/// something to draw on also where there is one value, or none.
fn span(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    let room = if high > low { (high - low) * 0.03 } else { 0.5 };
    low - room..high + room
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::losses::Losses;
    use super::*;

    fn losses() -> Losses {
        let mut losses = Losses::new("a < b & c");
        for step in 1..=100 {
            losses.step(step, 3.0 / step as f64 + 1.0);
        }
        for epoch in 1..=4 {
            let validation = 2.0 + (f64::from(epoch) - 3.0).powi(2);
            losses.epoch(epoch, u64::from(epoch) * 25, 2.0, Some(validation));
        }
        losses
    }

    #[test]
    fn a_picture_is_named_by_its_format() {
        assert!(picture_file("a/loss.SVG").is_ok());
        assert!(picture_file("loss.png").is_ok());
        assert!(picture_file("loss.pdf").unwrap_err().contains(".png"));
        assert!(picture_file("loss").is_err());
    }

    #[test]
    fn an_svg_has_the_curves_the_axes_and_the_best_epoch_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        write(&path, &losses()).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for word in [
            "a &lt; b &amp; c",
            "nats per character",
            "bits per character",
            "validation",
            "best: epoch 3, 2.000 (2.89 bits)",
        ] {
            assert!(svg.contains(word), "{word} in {svg}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_png_is_drawn_without_any_font_of_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.png");
        write(&path, &losses()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.starts_with(b"\x89PNG"));
        // Width and height, from the header.
        assert_eq!(bytes[16..20], (WIDTH * PNG_SCALE).to_be_bytes());
        assert_eq!(bytes[20..24], (HEIGHT * PNG_SCALE).to_be_bytes());
    }

    #[test]
    fn a_picture_without_points_is_still_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        write(&path, &Losses::new("nothing yet")).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(!svg.contains("NaN"), "{svg}");
        write(&path, &load::LoadChart::new(vec![])).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_with_the_name_of_the_file() {
        let failure = write(Path::new("/nonexistent/loss.svg"), &losses()).unwrap_err();
        assert!(failure.to_string().contains("/nonexistent/loss.svg"));
    }
}
