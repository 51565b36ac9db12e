//! The program `charlstm-server` on a free port, with a data folder that is
//! deleted afterwards.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tonic::transport::Channel;

use super::process::{self, Process};
use super::root;
use super::tools::skip;

/// Longest clean stop, which saves trainings and sessions. Ample for a slow
/// machine that runs other tests too; reached only by a server that hangs.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running `charlstm-server`. It is killed when this is dropped.
pub(crate) struct Server {
    process: Process,
    url: String,
    folder: TempDir,
    /// Open, so that the server never writes into a closed pipe.
    stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a server with an empty data folder and further flags. Blocks
    /// until it reports its address; panics, with its log, if it does not.
    pub(crate) fn start(extra_flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), extra_flags)
    }

    /// As [`Server::start`], in a folder that an earlier server has left with
    /// [`Server::stop`].
    pub(crate) fn start_in(folder: TempDir, extra_flags: &[&str]) -> Self {
        let command = command(&folder.path().join("data"), extra_flags);
        Self::launch(folder, command)
    }

    /// As [`Server::start`], with a data folder on a disk of its own with this
    /// number of bytes, which the test reaches as [`Server::small_disk`].
    /// The server then takes no more of its space in the background.
    /// `None`, after [`skip`], if the system does not let a test mount one.
    pub(crate) fn start_on_small_disk(bytes: u64, extra_flags: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let options = format!("size={bytes}");
        let command = on_own_disk(&data, &options, &command(&data, extra_flags))?;
        let server = Self::launch(folder, command);
        server.wait_for_session_logs();
        Some(server)
    }

    /// Waits until the session store has allocated its logs, which it does in the
    /// background. If that fails, what it had allocated is free again.
    fn wait_for_session_logs(&self) {
        const LOG_BYTES: u64 = 48 << 20;
        let folder = self.small_disk().join("sessions");
        let is_complete = |path: &Path| {
            path.extension().is_some_and(|kind| kind == "log")
                && path.metadata().is_ok_and(|log| log.len() >= LOG_BYTES)
        };
        for _ in 0..6000 {
            let files = fs::read_dir(&folder).unwrap();
            let logs = files.filter(|file| is_complete(&file.as_ref().unwrap().path()));
            if logs.count() == 2 {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the session store has not created its logs");
    }

    /// Returns the data folder of [`Server::start_on_small_disk`], for tests to
    /// fill.
    pub(crate) fn small_disk(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.id()));
        root.join(self.data_dir().strip_prefix("/").unwrap())
    }

    /// Starts `command`, a server that keeps its data in `folder`.
    pub(crate) fn launch(folder: TempDir, mut command: Command) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.path().join("server.log"))
            .unwrap();
        let process = Process::start(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(log),
        );
        let mut stdout = BufReader::new(process.take_stdout().unwrap());
        let mut line = String::new();
        // A server that hangs is killed, which ends this wait.
        stdout.read_line(&mut line).unwrap();
        let server = Self {
            process,
            url: line
                .trim_end()
                .strip_prefix("listening on ")
                .unwrap_or_default()
                .to_owned(),
            folder,
            stdout,
        };
        assert!(
            !server.url.is_empty(),
            "the server did not report its address, but {line:?}"
        );
        server
    }

    /// Returns its address, as `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> &str {
        self.url
            .split_once("://")
            .map_or(self.url.as_str(), |(_, address)| address)
    }

    /// Returns its address, as `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns a folder for files of the test, which also contains the data
    /// folder and the log of the server.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the data folder of the server.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns what the server has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder().join("server.log")).unwrap()
    }

    /// Connects to it.
    pub(crate) async fn connect(&self) -> Channel {
        let endpoint = Channel::from_shared(self.url.clone()).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// Returns its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends SIGTERM.
    pub(crate) fn signal_to_stop(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        self.process.signal(signal);
    }

    /// Waits for the end, and returns its status and what it has printed after
    /// its first line.
    pub(crate) fn wait(&mut self) -> (ExitStatus, String) {
        self.process.limit(STOP_LIMIT);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.process.wait(), rest)
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn terminate(&mut self) -> (ExitStatus, String) {
        self.signal_to_stop();
        self.wait()
    }

    /// Terminates it and returns its folder, for [`Server::start_in`]. Panics
    /// if the exit code is not 0.
    pub(crate) fn stop(self) -> TempDir {
        self.signal_to_stop();
        self.ended()
    }

    /// Waits for the end of a server that is shutting down, and returns
    /// its folder, for [`Server::start_in`]. Panics if the exit code is not 0.
    pub(crate) fn ended(mut self) -> TempDir {
        let (status, _) = self.wait();
        assert_eq!(status.code(), Some(0), "a clean stop");
        self.take_folder()
    }

    /// Kills it, as a power failure would, and returns its folder.
    pub(crate) fn kill(mut self) -> TempDir {
        self.signal(libc::SIGKILL);
        self.wait();
        self.take_folder()
    }

    fn take_folder(&mut self) -> TempDir {
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.folder.path().join("server.log");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            eprintln!("--- log of the server ---\n{log}---");
        }
    }
}

/// Returns an address of this machine on which no server listens.
pub(crate) fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Returns the command that starts the server under test on a data folder and
/// a free port.
pub(crate) fn command(data_dir: &Path, extra_flags: &[&str]) -> Command {
    command_of(server_program(), data_dir, extra_flags)
}

/// Returns the program under test.
pub(crate) fn server_program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_charlstm-server"))
}

/// Builds the server without libtorch, once, and returns its program. It has a target
/// folder of its own, so that it does not replace the program that the other
/// tests use, and is not optimized, so that it is built quickly.
pub(crate) fn inference_only_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = root().join("target/inference-only");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        process::run(
            Command::new(cargo)
                .args(["build", "--quiet", "--package", "charlstm-server"])
                .args(["--no-default-features", "--target-dir"])
                .arg(&target)
                .args(["--config", "profile.dev.opt-level=0"])
                .args(["--config", "profile.dev.package.\"*\".opt-level=0"])
                .args(["--config", "profile.dev.debug=false"])
                // Without these, a dependency on libtorch could not be built.
                .env("LIBTORCH", "/nonexistent")
                .env_remove("LIBTORCH_USE_PYTORCH"),
        );
        target.join("debug/charlstm-server")
    })
}

/// As [`command`], for another build of the server.
pub(crate) fn command_of(program: &Path, data_dir: &Path, extra_flags: &[&str]) -> Command {
    let mut command = Command::new(program);
    // Not the settings of the person who runs the tests.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CHARLSTM_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    if !extra_flags.contains(&"--device") {
        command.args(["--device", "cpu"]);
    }
    command
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .args(extra_flags);
    command
}

/// Returns `command` in a namespace of its own, where a small disk is mounted
/// at `data`. `None`, after [`skip`], if the system does not allow that.
pub(crate) fn on_own_disk(data: &Path, options: &str, command: &Command) -> Option<Command> {
    std::fs::create_dir_all(data).unwrap();
    let script = r#"mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@""#;
    let in_namespace = || {
        let mut unshare = Command::new("unshare");
        unshare
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                script,
                "sh",
                options,
            ])
            .arg(data);
        unshare
    };
    let allowed = in_namespace().arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        skip("this system does not let a test mount a disk (unshare --user --mount)");
        return None;
    }
    let mut wrapped = in_namespace();
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    Some(wrapped)
}

/// Runs a server that must fail at its start, and returns its exit code and
/// what it has written to standard error.
pub(crate) fn fail_to_start(command: &mut Command) -> (Option<i32>, String) {
    let output = process::output(command);
    assert_eq!(output.stdout, "", "it must not report an address");
    (output.status.code(), output.stderr)
}
