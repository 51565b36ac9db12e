//! The queue through which a worker gets its commands. Its length is bounded
//! by the engine's admission: every job in it holds a permit.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use charlstm_model::ModelId;

use crate::job::Job;
use crate::score::ScoreJob;

/// A command for a worker.
pub(crate) enum Command {
    /// Generates a text.
    Generate(Box<Job>),
    /// Scores a text.
    Score(Box<ScoreJob>),
    /// Ends all generations with a model and drops its weights.
    DropModel(ModelId),
    /// Makes the worker panic outside of a turn.
    #[cfg(test)]
    Crash,
}

#[derive(Default)]
struct InboxState {
    commands: Vec<Command>,
    is_woken: bool,
    is_stopped: bool,
}

/// The inbox of a worker.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    arrived: Condvar,
}

impl Inbox {
    /// Adds a command. Returns it if the worker was told to stop, since nobody
    /// would take it out.
    pub(crate) fn put(&self, command: Command) -> Result<(), Command> {
        let mut state = self.lock();
        if state.is_stopped {
            return Err(command);
        }
        state.commands.push(command);
        self.arrived.notify_one();
        Ok(())
    }

    /// Wakes the worker: a reader took text or left, or a session was deleted.
    pub(crate) fn wake(&self) {
        self.lock().is_woken = true;
        self.arrived.notify_one();
    }

    /// Tells the worker to stop.
    pub(crate) fn stop(&self) {
        self.lock().is_stopped = true;
        self.arrived.notify_one();
    }

    /// Rejects further commands and drops those that nobody takes out any
    /// more, which ends their jobs with an error.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.is_stopped = true;
        let commands = std::mem::take(&mut state.commands);
        drop(state);
        drop(commands);
    }

    /// Moves all commands to `commands`. With `wait`, blocks until there is a
    /// command, a wake-up or a stop, at most for that time. Returns whether
    /// the worker is to stop.
    pub(crate) fn take(&self, commands: &mut Vec<Command>, wait: Option<Duration>) -> bool {
        let mut state = self.lock();
        if let Some(wait) = wait {
            let is_idle = |state: &mut InboxState| {
                state.commands.is_empty() && !state.is_woken && !state.is_stopped
            };
            state = self
                .arrived
                .wait_timeout_while(state, wait, is_idle)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.is_woken = false;
        commands.append(&mut state.commands);
        state.is_stopped
    }

    /// No code panics while it holds the lock, and the state is consistent
    /// between any two statements.
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
