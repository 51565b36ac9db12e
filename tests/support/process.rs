//! Child processes with a time limit: a test whose program hangs fails.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use shared_child::SharedChild;
use shared_child::unix::SharedChildExt;

/// Longest life of a process, ample for a build on a slow machine. A process
/// that is still running then is killed, which ends every wait for it.
const LIFE_LIMIT: Duration = Duration::from_secs(1800);

/// A child process. It is killed when this is dropped.
pub(crate) struct Process {
    child: Arc<SharedChild>,
}

impl Process {
    /// Starts a process that is killed after [`LIFE_LIMIT`].
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = SharedChild::spawn(command)
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let process = Self {
            child: Arc::new(child),
        };
        process.limit(LIFE_LIMIT);
        process
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns its standard output, if it is a pipe and was not taken before.
    pub(crate) fn take_stdout(&self) -> Option<std::process::ChildStdout> {
        self.child.take_stdout()
    }

    /// Sends a signal; does nothing if the process has ended.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        self.child.send_signal(signal).unwrap();
    }

    /// Kills the process if it does not end within `limit`.
    pub(crate) fn limit(&self, limit: Duration) {
        let child = Arc::clone(&self.child);
        // Ends with the process.
        thread::spawn(move || {
            if child.wait_timeout(limit).unwrap().is_none() {
                eprintln!("process {} was killed: it did not end in time", child.id());
                child.kill().unwrap();
            }
        });
    }

    /// Waits for the end.
    pub(crate) fn wait(&self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both succeed if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has written, and how it has ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a process to its end, with the time limit of [`Process`]. Panics if
/// its output is not UTF-8.
pub(crate) fn output(command: &mut Command) -> Output {
    output_with_input(command, b"")
}

/// As [`output`], for a process that reads `input`.
pub(crate) fn output_with_input(command: &mut Command, input: &[u8]) -> Output {
    let file = || tempfile::tempfile().unwrap();
    let (mut stdin, stdout, stderr) = (file(), file(), file());
    std::io::Write::write_all(&mut stdin, input).unwrap();
    stdin.rewind().unwrap();
    // Files and not pipes: nobody has to read while the process writes.
    let process = Process::start(
        command
            .stdin(stdin)
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap()),
    );
    let status = process.wait();
    // The command keeps its ends of the files.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let content = |mut file: File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    Output {
        status,
        stdout: content(stdout),
        stderr: content(stderr),
    }
}

/// Runs a process to its end in the root of the checkout and returns its
/// standard output. Panics with everything it has written if it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = output(command.current_dir(super::root()));
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        output.stdout,
        output.stderr
    );
    output.stdout
}
