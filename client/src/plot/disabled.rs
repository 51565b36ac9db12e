//! Replaces the module `plot` in a build without the cargo feature `plot`. The
//! flag `--plot` is rejected while the command line is parsed: a `PlotFile`
//! never exists, so the other functions are never called.

use std::str::FromStr;

use charlstm_proto::v1::watch_training_response::Event;

use crate::failure::Failure;
use crate::load_test::LoadSummary;
use crate::output_file::Existing;

/// The file that `--plot` names.
#[derive(Clone, Debug)]
pub(crate) enum PlotFile {}

impl FromStr for PlotFile {
    type Err = String;

    /// Fails always.
    fn from_str(_: &str) -> Result<Self, String> {
        Err("this client was built without the cargo feature `plot`".into())
    }
}

/// The value of `--plot-theme`.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum PlotTheme {
    #[default]
    Auto,
    Light,
    Dark,
}

/// A plot of the losses of one training.
pub(crate) struct LossPlot;

impl LossPlot {
    pub(crate) fn new(_: PlotFile, _: PlotTheme, _: Existing) -> Result<Self, Failure> {
        Ok(Self)
    }

    pub(crate) fn add(&mut self, _: &Event) -> bool {
        false
    }

    pub(crate) fn write(&mut self, _: bool) -> Result<(), Failure> {
        Ok(())
    }
}

/// A plot of a load test.
pub(crate) struct LoadPlot;

impl LoadPlot {
    pub(crate) fn new(_: PlotFile, _: PlotTheme, _: Existing) -> Result<Self, Failure> {
        Ok(Self)
    }

    pub(crate) fn set_title(&mut self, _: String) {}

    pub(crate) fn add(&mut self, _: u32, _: &LoadSummary) {}

    pub(crate) fn write(&mut self, _: bool) -> Result<(), Failure> {
        Ok(())
    }
}
