//! `completions`: prints the completion script for a shell.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::args::CommandLine;
use crate::failure::Failure;
use crate::output::Output;

/// Prints the script to standard output.
pub(crate) fn run(shell: Shell, output: Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(
        shell,
        &mut CommandLine::command(),
        "charlstm-client",
        &mut script,
    );
    output.bytes(&script)
}
