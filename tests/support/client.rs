//! The command-line client, as a person uses it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::process;
use super::server::Server;

/// Returns a command of the client, for this server.
pub(crate) fn client(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(client_program());
    command
        .args(arguments)
        .env("CHARLSTM_ADDR", server.url())
        .stdin(Stdio::null());
    command
}

/// Returns the client's program, which is built if it is missing or older than
/// its sources: cargo builds only the programs of the package under test.
pub(crate) fn client_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let folder = test.ancestors().nth(2).unwrap();
        let program = folder.join("charlstm-client");
        if !is_up_to_date(&program) {
            build(folder);
            assert!(program.exists(), "{} was not built", program.display());
        }
        program
    })
}

/// Whether a program is newer than all its sources, which cargo lists in a file
/// next to it.
fn is_up_to_date(program: &Path) -> bool {
    let built = program.metadata().and_then(|metadata| metadata.modified());
    let sources = std::fs::read_to_string(program.with_extension("d"));
    let (Ok(built), Ok(sources)) = (built, sources) else {
        return false;
    };
    let (_, sources) = sources.split_once(':').unwrap_or_default();
    sources.split_whitespace().all(|source| {
        let changed = Path::new(source).metadata().and_then(|m| m.modified());
        changed.is_ok_and(|changed| changed <= built)
    })
}

/// Builds the client into the folder of a profile, `target/PROFILE`.
fn build(folder: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "charlstm-client"]);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    command
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .current_dir(super::root());
    process::run(&mut command);
}

/// The result of a command of the client.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<process::Output> for CommandOutput {
    fn from(output: process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: output.stderr,
        }
    }
}

/// Runs a command of the client to its end.
pub(crate) fn ask(server: &Server, arguments: &[&str]) -> CommandOutput {
    process::output(&mut client(server, arguments)).into()
}

/// Runs a command of the client that must succeed, and returns its standard
/// output.
pub(crate) fn ask_ok(server: &Server, arguments: &[&str]) -> String {
    let output = ask(server, arguments);
    assert_eq!(output.code, Some(0), "{arguments:?}: {}", output.stderr);
    output.stdout
}
