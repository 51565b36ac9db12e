//! Replaces the module `plot` in a build without the cargo feature `plot`. The
//! flag `--plot` is rejected while the command line is parsed, so none of these
//! types ever has a value.

use std::str::FromStr;

use charlstm_proto::v1::watch_training_response::Event;

use crate::failure::Failure;
use crate::load_test::LoadSummary;

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

/// A plot of the losses of one training.
pub(crate) enum LossPlot {}

impl LossPlot {
    pub(crate) fn new(file: PlotFile) -> Self {
        match file {}
    }

    pub(crate) fn add(&mut self, _: &Event) -> bool {
        match *self {}
    }

    pub(crate) fn write(&self) -> Result<(), Failure> {
        match *self {}
    }
}

/// A plot of a load test.
pub(crate) enum LoadPlot {}

impl LoadPlot {
    pub(crate) fn new(file: PlotFile) -> Self {
        match file {}
    }

    pub(crate) fn add(&mut self, _: u32, _: &LoadSummary) {
        match *self {}
    }

    pub(crate) fn write(&self) -> Result<(), Failure> {
        match *self {}
    }
}
