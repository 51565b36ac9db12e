//! Starting the real server, for end-to-end tests.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use tempfile::TempDir;
use tonic::transport::Channel;

/// A server of its own on a free port, with a data folder of its own. Killed
/// when it is dropped.
pub struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    url: String,
    folder: TempDir,
}

impl Server {
    /// Starts it with these arguments beside `--listen` and `--data-dir`, and
    /// waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(TempDir::new().unwrap(), arguments)
    }

    /// Starts it on a data folder that is there already.
    pub fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        let mut child = command(folder.path(), arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let url = line
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("the server printed {line:?}"))
            .trim_end()
            .to_owned();
        Self {
            child,
            stdout,
            url,
            folder,
        }
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        self.url.split("://").nth(1).unwrap()
    }

    /// Its data folder.
    pub fn data_dir(&self) -> &Path {
        self.folder.path()
    }

    /// A connection to it.
    pub async fn connect(&self) -> Channel {
        Channel::from_shared(self.url.clone())
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// Sends SIGTERM.
    pub fn signal_to_stop(&self) {
        let id = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the process is our child and not yet waited for.
        assert_eq!(unsafe { libc::kill(id, libc::SIGTERM) }, 0);
    }

    /// Waits until it has ended; returns its status and what it printed after
    /// its first line.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }

    /// Sends SIGTERM and waits until it has ended.
    pub fn terminate(&mut self) -> (ExitStatus, String) {
        self.signal_to_stop();
        self.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server, not yet started.
pub fn command(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .args(["--listen", "127.0.0.1:0", "--device", "cpu", "--data-dir"])
        .arg(data_dir)
        .args(arguments);
    command
}

/// The server's program, also from tests of another package.
fn program() -> PathBuf {
    if let Some(path) = option_env!("CARGO_BIN_EXE_charlstm-server") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("charlstm-server")
}
