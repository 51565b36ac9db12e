//! Starts and stops a server on this machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Output;

/// Time limit for the start. A slow machine that loads the libraries of a GPU
/// needs far less; only a server that hangs reaches it.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Time limit for a clean stop, after which the server is killed. The server
/// waits for its calls for ten seconds, then saves trainings and sessions.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills the process; `stop` ends it cleanly.
pub(super) struct LocalServer {
    child: Child,
    /// Kept open, so that the server never writes to a closed pipe.
    stdout: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl LocalServer {
    /// Starts a server that listens at `listen` and logs to `server.log` in
    /// its data folder, which is created if it does not exist.
    pub(super) fn start(listen: &str, data_dir: &Path) -> Result<Self, Failure> {
        let program = program()?;
        let io_failure = |action: String| move |source| Failure::Io { action, source };
        fs::create_dir_all(data_dir).map_err(io_failure(format!(
            "create the folder {}",
            data_dir.display()
        )))?;
        let log = data_dir.join("server.log");
        let log_file =
            File::create(&log).map_err(io_failure(format!("write {}", log.display())))?;
        let mut child = Command::new(&program)
            .args(["--listen", listen, "--data-dir"])
            .arg(data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            // In a process group of its own, the server does not receive
            // Ctrl-C, which may only stop a generation of the REPL.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(io_failure(format!("start {}", program.display())))?;
        let stdout = child.stdout.take().expect("standard output is piped");
        Ok(Self {
            child,
            stdout: BufReader::new(stdout).lines(),
            log,
        })
    }

    /// Waits until the server listens and returns its address as a URL. Fails
    /// with the end of its log if it ends or takes too long.
    pub(super) async fn wait_until_ready(&mut self) -> Result<String, Failure> {
        let line = tokio::time::timeout(START_TIMEOUT, self.stdout.next_line()).await;
        if let Ok(Ok(Some(line))) = &line
            && let Some(address) = line.strip_prefix("listening on ")
        {
            return Ok(address.to_owned());
        }
        Err(Failure::Refused(format!(
            "the server did not start; its log {} ends with:\n{}",
            self.log.display(),
            last_lines(&self.log)
        )))
    }

    /// Asks the server to stop and waits until it has saved its state. Ctrl-C
    /// or `STOP_TIMEOUT` kills it.
    pub(super) async fn stop(mut self, output: Output) {
        let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) else {
            return;
        };
        if kill(Pid::from_raw(id), Signal::SIGTERM).is_err() {
            return;
        }
        let mut interrupts = Interrupts::listen();
        tokio::select! {
            _ = self.child.wait() => return,
            () = interrupts.next() => {}
            () = tokio::time::sleep(STOP_TIMEOUT) => {}
        }
        output.note("the server did not stop in time; killing it");
        // This fails only if the server has just ended.
        let _ = self.child.kill().await;
    }
}

/// Finds the program of the server: next to this program or in `PATH`.
fn program() -> Result<PathBuf, Failure> {
    const NAME: &str = "charlstm-server";
    let sibling = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join(NAME));
    sibling
        .into_iter()
        .chain(in_path)
        .find(|program| program.is_file())
        .ok_or_else(|| {
            Failure::Refused(format!(
                "cannot start a server: {NAME} is neither next to this program nor in PATH"
            ))
        })
}

/// Returns the last lines of a log.
fn last_lines(log: &Path) -> String {
    const LINES: usize = 5;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
