//! `completions`: prints the completion script for a shell.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::args::CommandLine;
use crate::failure::Failure;
use crate::output::Output;
use crate::output_file::{self, Existing};

/// Name of the program that is completed.
const PROGRAM: &str = "charlstm-client";

/// Prints the script to standard output, or writes it to a file.
pub(crate) fn run(
    shell: Shell,
    path: Option<&Path>,
    existing: Existing,
    output: Output,
) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(shell, &mut CommandLine::command(), PROGRAM, &mut script);
    if shell == Shell::Bash {
        script = with_consistent_names(&script);
    }
    match path {
        Some(path) => output_file::write(path, &script, existing),
        None => output.bytes(&script),
    }
}

/// Repairs a script for bash: clap_complete sets the name of a command with
/// `charlstm__client`, and compares it with `charlstm__subcmd__client`, because
/// it takes the hyphen in the name of the program for a level of commands.
fn with_consistent_names(script: &[u8]) -> Vec<u8> {
    let script = String::from_utf8_lossy(script);
    let split = PROGRAM.replace('-', "__subcmd__");
    script
        .replace(&split, &PROGRAM.replace('-', "__"))
        .into_bytes()
}
