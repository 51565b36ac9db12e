//! `man`: writes the manual pages. It is for `make man`, so it is not one of the
//! commands that are listed and completed.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, Parser};
use clap_mangen::Man;

use crate::args::CommandLine;
use crate::failure::Failure;
use crate::output::Output;
use crate::output_file::{self, Existing};

/// Write the manual pages, one per command.
#[derive(Debug, Parser)]
#[command(name = "charlstm-client man")]
struct ManArgs {
    /// Folder to write the pages to
    folder: PathBuf,
}

/// Parses `arguments`, which follow the name of the program, and writes a page
/// for the program and one for each command to a folder, which is created if it
/// does not exist. Older pages are replaced.
pub(crate) fn run(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    output: Output,
) -> Result<(), Failure> {
    let folder = ManArgs::parse_from(arguments).folder;
    std::fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
    let mut command = CommandLine::command().disable_help_subcommand(true);
    command.build();
    write_pages(command, &folder)?;
    output.note(&format!("wrote the manual pages to {}", folder.display()));
    Ok(())
}

fn write_pages(command: Command, folder: &Path) -> Result<(), Failure> {
    for subcommand in command.get_subcommands() {
        write_pages(subcommand.clone(), folder)?;
    }
    let man = Man::new(command);
    let mut page = Vec::new();
    man.render(&mut page)
        .map_err(|error| failed(folder, error))?;
    let path = folder.join(man.get_filename());
    output_file::write(&path, &page, Existing::Replace)
}

fn failed(folder: &Path, error: io::Error) -> Failure {
    Failure::Io {
        action: format!("write the manual pages to {}", folder.display()),
        source: error,
    }
}
