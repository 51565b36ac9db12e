//! The thread that computes: it takes what arrives, primes a little, steps
//! every text by one character, and looks after those who are parked. It
//! shares nothing with other workers but the session store.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::admission::Load;
use super::batch::Batch;
use super::error::GenerateError;
use super::inbox::{Command, Inbox};
use super::job::{Job, Next};
use super::request::FinishReason;
use super::scheduler::{PrefillBudget, Scheduler};
use super::score::ScoreJob;
use super::session_manager::SessionManager;
use super::stream::TextBuffer;
use charlstm_model::decode_step::DecodeError;
use charlstm_model::sampler::Sampler;
use charlstm_repository::LoadedModel;

/// A worker looks for sessions whose time is over so often, since those that
/// nobody asks for must go as well.
const SESSION_LOOK: Duration = Duration::from_secs(10);

/// Models that a worker keeps ready though none of their texts runs.
const READY_MODELS: usize = 4;

/// Most characters that are scored between two steps of running texts.
const SCORE_CHARS: usize = 32;

/// Characters that are scored at once where nothing else is to be done.
const LONE_SCORE_CHARS: usize = 64;

/// What a worker is told when it is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkerSettings {
    /// Texts in its batch.
    pub(super) slots: usize,
    /// A reader who reads nothing for so long is given up.
    pub(super) stalled_reader: Duration,
    /// On stopping, readers have so long to take what there is.
    pub(super) grace: Duration,
}

/// A worker.
pub(super) struct Worker {
    inbox: Arc<Inbox>,
    load: Arc<Load>,
    book: Arc<SessionManager>,
    settings: WorkerSettings,
    scheduler: Scheduler<Job>,
    batches: Vec<Batch>,
    parked: Vec<Parked>,
    /// Texts that are made and not yet read to the end.
    unread: Vec<Unread>,
    scores: VecDeque<Box<ScoreJob>>,
    sampler: Sampler,
    pace: PrefillBudget,
    commands: Vec<Command>,
    /// Readers to wake at the end of the turn, when the step's work is done.
    readers: Vec<Waker>,
    next_session_look: Instant,
}

/// A text whose reader is behind.
struct Parked {
    job: Job,
    patience: Patience,
}

/// A text that is over, and whose end was not read.
struct Unread {
    buffer: Weak<TextBuffer>,
    patience: Patience,
}

/// How long a reader has read nothing.
struct Patience {
    taken: u64,
    since: Instant,
}

impl Patience {
    fn new(buffer: &TextBuffer, now: Instant) -> Self {
        Self {
            taken: buffer.taken(),
            since: now,
        }
    }

    /// Whether the reader has read nothing for `limit`.
    fn is_over(&mut self, buffer: &TextBuffer, now: Instant, limit: Duration) -> bool {
        let taken = buffer.taken();
        if taken != self.taken {
            (self.taken, self.since) = (taken, now);
        }
        now.duration_since(self.since) >= limit
    }
}

impl Worker {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        load: Arc<Load>,
        book: Arc<SessionManager>,
        settings: WorkerSettings,
    ) -> Self {
        Self {
            inbox,
            load,
            book,
            settings,
            scheduler: Scheduler::new(settings.slots),
            batches: Vec::new(),
            parked: Vec::new(),
            unread: Vec::new(),
            scores: VecDeque::new(),
            sampler: Sampler::default(),
            pace: PrefillBudget::new(),
            commands: Vec::new(),
            readers: Vec::new(),
            next_session_look: Instant::now(),
        }
    }

    /// Works until told to stop; then ends the texts under way. A panic in a
    /// turn ends the texts that were being computed, and nothing else.
    pub(super) fn run(mut self) {
        loop {
            let wait = self.wait(Instant::now());
            let stop = self.inbox.take(&mut self.commands, wait);
            let now = Instant::now();
            if now >= self.next_session_look {
                self.next_session_look = now + SESSION_LOOK;
                self.book.store().expire(now);
            }
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                self.recover();
            }
            if stop {
                break;
            }
        }
        if catch_unwind(AssertUnwindSafe(|| self.shutdown())).is_err() {
            tracing::error!("a worker failed while it stopped");
        }
    }

    /// How long the worker may sleep; `None` where there is work.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if !self.scheduler.is_idle() || !self.scores.is_empty() {
            return None;
        }
        let limit = self.settings.stalled_reader;
        let parked = self
            .parked
            .iter()
            .flat_map(|parked| [Some(parked.patience.since + limit), parked.job.deadline()]);
        let unread = self
            .unread
            .iter()
            .map(|unread| Some(unread.patience.since + limit));
        let first = parked.chain(unread).flatten().min();
        let wait = first.map_or(SESSION_LOOK, |first| first.saturating_duration_since(now));
        Some(wait.min(SESSION_LOOK))
    }

    /// One turn: at most one chunk of priming, one step, one chunk of
    /// scoring.
    fn turn(&mut self) {
        self.take_commands();
        self.reap(Instant::now());
        let readers = &mut self.readers;
        self.scheduler
            .admit(|job| readers.extend(job.buffer().start()));
        self.publish_load();
        self.prime();
        self.step();
        self.score();
        // Again, since the worker may sleep now for long.
        self.publish_load();
        for reader in self.readers.drain(..) {
            reader.wake();
        }
        // Where all processors compute, those who carry text to its readers
        // would wait for the next tick of the clock, some steps away.
        std::thread::yield_now();
    }

    fn take_commands(&mut self) {
        for command in std::mem::take(&mut self.commands) {
            match command {
                Command::Generate(job) => self.scheduler.join(*job),
                Command::Score(job) => self.scores.push_back(job),
                Command::DropModel(id) => {
                    let of_model = |job: &Job| job.model().id == id;
                    let jobs = self.take_out(of_model);
                    for job in jobs {
                        self.finish(job, FinishReason::Cancelled);
                    }
                    self.batches.retain(|batch| batch.model().id != id);
                }
            }
        }
    }

    /// Takes jobs out of wherever they are.
    fn take_out(&mut self, leaves: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut out = self.scheduler.take_out(&leaves);
        for batch in &mut self.batches {
            for job in batch.take_out(&leaves) {
                self.scheduler.dismiss();
                out.push(job);
            }
        }
        let parked = self.parked.extract_if(.., |parked| leaves(&parked.job));
        out.extend(parked.map(|parked| parked.job));
        out
    }

    /// Notices who left, whose time is over, and who has read.
    fn reap(&mut self, now: Instant) {
        for job in self.take_out(|job| job.must_leave(now)) {
            match job.interruption(now) {
                Some(Ok(reason)) => self.finish(job, reason),
                Some(Err(error)) => self.readers.extend(job.fail(error)),
                // Nobody is there to be told.
                None => drop(job.fail(GenerateError::Stopping)),
            }
        }
        let limit = self.settings.stalled_reader;
        let drained = self.parked.extract_if(.., |p| !p.job.buffer().is_parked());
        for parked in drained {
            self.scheduler.rejoin(parked.job);
        }
        let stalled = self.parked.extract_if(.., |parked| {
            parked.patience.is_over(parked.job.buffer(), now, limit)
        });
        for parked in stalled {
            self.readers
                .extend(parked.job.fail(GenerateError::Stalled(limit)));
        }
        let readers = &mut self.readers;
        self.unread.retain_mut(|unread| {
            let Some(buffer) = unread.buffer.upgrade() else {
                return false;
            };
            let stalled = !buffer.is_done() && unread.patience.is_over(&buffer, now, limit);
            if stalled {
                readers.extend(buffer.give_up(GenerateError::Stalled(limit)));
            }
            !stalled && !buffer.is_done()
        });
    }

    /// Primes with as many characters as the running texts can bear.
    fn prime(&mut self) {
        let mut left = self.pace.chunk(self.scheduler.running());
        while left > 0 {
            let Some(mut job) = self.scheduler.next_to_prime() else {
                break;
            };
            match self.prime_chunk(&mut job, left) {
                Ok(chars) => {
                    left = left.saturating_sub(chars.max(1));
                    self.primed(job);
                }
                Err(error) => {
                    self.scheduler.dismiss();
                    self.fail_broken(job, &error);
                }
            }
        }
    }

    /// Primes a job with one stretch; returns its characters.
    fn prime_chunk(&mut self, job: &mut Job, most: usize) -> Result<usize, DecodeError> {
        if job.is_primed() {
            return Ok(0);
        }
        let begin = Instant::now();
        let slots = self.settings.slots;
        let batch = batch_of(&mut self.batches, job.model(), slots)?;
        let chars = match job.stretch(most) {
            Some((state, stretch)) => {
                batch.stepper().prefill(state, stretch)?;
                stretch.len()
            }
            None => 0,
        };
        job.advance_prefill(chars);
        self.load
            .prefill_chars
            .fetch_add(chars as u64, Ordering::Relaxed);
        self.pace.primed(chars, begin.elapsed());
        Ok(chars)
    }

    /// Where a job goes after a stretch of priming.
    fn primed(&mut self, job: Job) {
        if !job.is_primed() {
            self.scheduler.prime_again(job);
        } else if job.wants_no_text() {
            self.scheduler.dismiss();
            self.finish(job, FinishReason::Length);
        } else {
            let model = Arc::clone(job.model());
            match batch_of(&mut self.batches, &model, self.settings.slots) {
                Ok(batch) => batch.push(job),
                Err(error) => {
                    self.scheduler.dismiss();
                    self.fail_broken(job, &error);
                }
            }
        }
    }

    /// One character more for every running text.
    fn step(&mut self) {
        let begin = Instant::now();
        let mut stepped = false;
        for i in 0..self.batches.len() {
            let batch = &mut self.batches[i];
            if batch.is_empty() {
                continue;
            }
            stepped = true;
            let rows = batch.len() as u64;
            self.load.steps.fetch_add(1, Ordering::Relaxed);
            self.load.rows.fetch_add(rows, Ordering::Relaxed);
            match batch.step(&mut self.sampler, begin, &mut self.readers) {
                Ok(out) => {
                    for (job, next) in out {
                        self.scheduler.dismiss();
                        self.leave_batch(job, next, begin);
                    }
                }
                Err(error) => {
                    for job in batch.take_out(|_| true) {
                        self.scheduler.dismiss();
                        self.fail_broken(job, &error);
                    }
                }
            }
        }
        if stepped {
            self.pace.stepped(begin.elapsed());
        }
    }

    fn leave_batch(&mut self, job: Job, next: Next, now: Instant) {
        match next {
            Next::Finish(reason) => self.finish(job, reason),
            // A job that goes on does not leave its batch.
            Next::Park | Next::Continue => {
                let patience = Patience::new(job.buffer(), now);
                self.parked.push(Parked { job, patience });
            }
        }
    }

    /// A chunk of the score that waits longest.
    fn score(&mut self) {
        let Some(mut job) = self.scores.pop_front() else {
            return;
        };
        if job.is_abandoned() {
            return;
        }
        if job.deadline.is_some_and(|d| d <= Instant::now()) {
            return job.answer(Err(GenerateError::Deadline));
        }
        let chars = if self.scheduler.is_idle() {
            LONE_SCORE_CHARS
        } else {
            SCORE_CHARS.min(self.pace.chunk(self.scheduler.running()))
        };
        let slots = self.settings.slots;
        let advanced = batch_of(&mut self.batches, &job.model, slots)
            .and_then(|batch| job.advance(batch.stepper(), chars));
        match advanced {
            Ok(None) => self.scores.push_back(job),
            Ok(Some(scored)) => job.answer(Ok(scored)),
            Err(error) => job.answer(Err(GenerateError::Internal(error.to_string()))),
        }
    }

    /// Ends a job, and watches that its end is read.
    fn finish(&mut self, job: Job, reason: FinishReason) {
        let buffer = Arc::clone(job.buffer());
        self.readers.extend(job.finish(reason));
        if !buffer.is_done() {
            self.unread.push(Unread {
                patience: Patience::new(&buffer, Instant::now()),
                buffer: Arc::downgrade(&buffer),
            });
        }
    }

    fn fail_broken(&mut self, job: Job, error: &DecodeError) {
        let error = GenerateError::Internal(error.to_string());
        self.readers.extend(job.fail(error));
    }

    fn publish_load(&self) {
        let running = self.scheduler.occupied();
        self.load.running.store(running, Ordering::Relaxed);
        let queued = self.scheduler.waiting();
        self.load.queued.store(queued, Ordering::Relaxed);
    }

    /// After a panic the states of the texts that were computed are not to be
    /// trusted: they fail, and their sessions stand where their readers are.
    /// Those who wait or are parked go on.
    fn recover(&mut self) {
        tracing::error!("a worker's turn failed; the texts it computed are ended");
        self.batches.clear();
        drop(self.scheduler.take_priming());
        self.scheduler.dismiss_all();
        self.scores.clear();
        for reader in self.readers.drain(..) {
            reader.wake();
        }
    }

    /// Ends all texts, and gives their readers a little time to take them.
    fn shutdown(&mut self) {
        self.take_commands();
        for job in self.take_out(|_| true) {
            self.finish(job, FinishReason::Shutdown);
        }
        for job in self.scores.drain(..) {
            job.answer(Err(GenerateError::Stopping));
        }
        let end = Instant::now() + self.settings.grace;
        loop {
            for reader in self.readers.drain(..) {
                reader.wake();
            }
            self.unread
                .retain(|unread| unread.buffer.upgrade().is_some_and(|b| !b.is_done()));
            let left = end.saturating_duration_since(Instant::now());
            if self.unread.is_empty() || left.is_zero() {
                break;
            }
            // The inbox is stopped and would not let us wait; a reader that
            // takes its end is noticed at the next look.
            std::thread::sleep(left.min(Duration::from_millis(5)));
        }
        for unread in self.unread.drain(..) {
            let reader = unread
                .buffer
                .upgrade()
                .and_then(|buffer| buffer.give_up(GenerateError::Stopping));
            if let Some(reader) = reader {
                reader.wake();
            }
        }
        self.publish_load();
    }
}

/// The batch of a model, made where there is none yet.
fn batch_of<'a>(
    batches: &'a mut Vec<Batch>,
    model: &Arc<LoadedModel>,
    slots: usize,
) -> Result<&'a mut Batch, DecodeError> {
    let same = |batch: &Batch| Arc::ptr_eq(&batch.model().weights, &model.weights);
    let place = match batches.iter().position(same) {
        Some(place) => place,
        None => {
            if batches.len() >= READY_MODELS {
                batches.retain(|batch| !batch.is_empty());
            }
            batches.push(Batch::new(Arc::clone(model), slots)?);
            batches.len() - 1
        }
    };
    Ok(&mut batches[place])
}
