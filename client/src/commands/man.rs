//! `man`: writes the manual pages. Hidden: `make man` runs it.

use std::path::Path;

use clap::CommandFactory;

use crate::args::Args;
use crate::exit::Failure;
use crate::output::Output;

/// Writes a page for the program and one for each command.
pub(crate) fn run(folder: &Path, output: Output) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Args::command(), folder))
        .map_err(|error| Failure::Io {
            what: format!("write manual pages into {}", folder.display()),
            source: error,
        })?;
    output.note(&format!("wrote the manual pages into {}", folder.display()));
    Ok(())
}
