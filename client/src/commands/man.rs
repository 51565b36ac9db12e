//! `man`: writes the manual pages. A hidden command for `make man`.

use std::path::Path;

use clap::CommandFactory;

use crate::args::CommandLine;
use crate::failure::Failure;
use crate::output::Output;

/// Writes a page for the program and one for each command to `folder`, which is
/// created if it does not exist.
pub(crate) fn run(folder: &Path, output: Output) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(CommandLine::command(), folder))
        .map_err(|error| Failure::Io {
            action: format!("write the manual pages to {}", folder.display()),
            source: error,
        })?;
    output.note(&format!("wrote the manual pages to {}", folder.display()));
    Ok(())
}
