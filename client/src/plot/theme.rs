//! The colours of a chart, on a light and on a dark background.

use plotters::style::RGBColor;

/// The colours of a chart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Theme {
    pub(super) background: RGBColor,
    /// Text, axes and grid.
    pub(super) text: RGBColor,
    pub(super) blue: RGBColor,
    pub(super) pale_blue: RGBColor,
    pub(super) orange: RGBColor,
    pub(super) pale_orange: RGBColor,
}

/// The value of `--plot-theme`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum PlotTheme {
    /// An SVG file follows the viewer, a PNG file is light
    #[default]
    Auto,
    /// A light background
    Light,
    /// A dark background
    Dark,
}

/// For a light background.
pub(super) const LIGHT: Theme = Theme {
    background: RGBColor(255, 255, 255),
    text: RGBColor(0, 0, 0),
    blue: RGBColor(31, 78, 150),
    pale_blue: RGBColor(180, 200, 226),
    orange: RGBColor(200, 80, 30),
    pale_orange: RGBColor(236, 178, 148),
};

/// For a dark background.
pub(super) const DARK: Theme = Theme {
    background: RGBColor(13, 17, 23),
    text: RGBColor(230, 237, 243),
    blue: RGBColor(88, 166, 255),
    pale_blue: RGBColor(44, 78, 122),
    orange: RGBColor(240, 136, 62),
    pale_orange: RGBColor(122, 74, 44),
};

impl Theme {
    fn colours(&self) -> [RGBColor; 6] {
        [
            self.background,
            self.text,
            self.blue,
            self.pale_blue,
            self.orange,
            self.pale_orange,
        ]
    }
}

/// Makes an SVG image that was drawn for a light background follow the viewer: a
/// style sheet replaces its colours if the viewer prefers a dark background.
pub(super) fn following_viewer(svg: &str) -> String {
    let hexadecimal =
        |RGBColor(red, green, blue): RGBColor| format!("#{red:02X}{green:02X}{blue:02X}");
    let rules = LIGHT.colours().into_iter().zip(DARK.colours());
    let rules = rules.map(|(light, dark)| {
        let (light, dark) = (hexadecimal(light), hexadecimal(dark));
        format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}\n")
    });
    let rules: String = rules.collect();
    let style = format!("<style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>\n");
    match svg.find('>') {
        // Behind the start tag.
        Some(end) => format!("{}\n{style}{}", &svg[..=end], &svg[end + 1..]),
        None => svg.to_owned(),
    }
}
