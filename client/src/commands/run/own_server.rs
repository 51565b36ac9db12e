//! A server that this client starts and stops.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::exit::{Failure, Interrupts};
use crate::output::Output;

/// Ample for a slow machine that loads a GPU's libraries; reached only by a
/// server that hangs.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A clean stop saves the training and the sessions; the server itself waits
/// at most ten seconds for calls. Later it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it; `stop` is the clean way.
pub(super) struct OwnServer {
    child: Child,
    /// Open, so that the server never writes into a closed pipe.
    stdout: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl OwnServer {
    /// Starts a server that listens at `listen`, with its log beside its data.
    pub(super) fn start(listen: &str, data_dir: &Path) -> Result<Self, Failure> {
        let program = program()?;
        let io_failure = |what: String| move |source| Failure::Io { what, source };
        fs::create_dir_all(data_dir).map_err(io_failure(format!(
            "make the folder {}",
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
            // Ctrl-C at the terminal is for the client: in its repl it stops
            // the text, not the server.
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

    /// Waits until it listens; its address as a URL.
    pub(super) async fn ready(&mut self) -> Result<String, Failure> {
        let line = tokio::time::timeout(START_LIMIT, self.stdout.next_line()).await;
        if let Ok(Ok(Some(line))) = &line
            && let Some(address) = line.strip_prefix("listening on ")
        {
            return Ok(address.to_owned());
        }
        Err(Failure::Refused(format!(
            "the server did not start; the end of its log {}:\n{}",
            self.log.display(),
            last_lines(&self.log)
        )))
    }

    /// Tells it to stop and waits until it has saved everything. Ctrl-C kills
    /// it.
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
            () = tokio::time::sleep(STOP_LIMIT) => {}
        }
        output.note("the server did not stop in time and is killed");
        // Fails only where it has just ended.
        let _ = self.child.kill().await;
    }
}

/// The server's program: beside this one, or where the shell would find it.
fn program() -> Result<PathBuf, Failure> {
    const NAME: &str = "charlstm-server";
    let beside = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join(NAME));
    beside
        .into_iter()
        .chain(in_path)
        .find(|program| program.is_file())
        .ok_or_else(|| Failure::Io {
            what: format!("start a server: no {NAME} beside this program or in PATH"),
            source: io::ErrorKind::NotFound.into(),
        })
}

/// What a log says at its end.
fn last_lines(log: &Path) -> String {
    const LINES: usize = 5;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
