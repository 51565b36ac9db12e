//! What reaches a worker from outside. Its length is bounded by the engine's
//! admission: every job in it holds a permit.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::job::Job;
use super::score::ScoreJob;
use charlstm_repository::ModelId;

/// One thing for a worker to do.
pub(super) enum Command {
    /// Generate a text.
    Generate(Box<Job>),
    /// Score a text.
    Score(Box<ScoreJob>),
    /// End what is under way with a model, and let go of it.
    DropModel(ModelId),
}

#[derive(Default)]
struct Content {
    commands: Vec<Command>,
    woken: bool,
    stop: bool,
}

/// A worker's inbox.
#[derive(Default)]
pub(super) struct Inbox {
    content: Mutex<Content>,
    arrived: Condvar,
}

impl Inbox {
    /// Puts a command in. Gives it back once the worker was told to stop,
    /// since nobody would ever take it out.
    pub(super) fn put(&self, command: Command) -> Result<(), Command> {
        let mut content = self.lock();
        if content.stop {
            return Err(command);
        }
        content.commands.push(command);
        self.arrived.notify_one();
        Ok(())
    }

    /// Makes the worker look around: a reader took its text, or left.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.arrived.notify_one();
    }

    /// Tells the worker to stop.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.arrived.notify_one();
    }

    /// Moves all commands to `commands`; with `wait`, first waits so long for
    /// one, or for a call to wake or stop. Returns whether to stop.
    pub(super) fn take(&self, commands: &mut Vec<Command>, wait: Option<Duration>) -> bool {
        let mut content = self.lock();
        if let Some(wait) = wait {
            let idle = |content: &mut Content| {
                content.commands.is_empty() && !content.woken && !content.stop
            };
            content = self
                .arrived
                .wait_timeout_while(content, wait, idle)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        content.woken = false;
        commands.append(&mut content.commands);
        content.stop
    }

    /// No code panics while it holds the lock, and the content is sound
    /// between any two lines anyway.
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
