//! The thread that computes. Each turn it takes its commands, prefills a
//! little, takes a decode step for every running generation, and scores a
//! little. It shares nothing with other workers.

mod batches;
mod guard;
mod prefill;
mod reader_timeout;
mod scoring;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use charlstm_model::decode_step::DecodeError;
use charlstm_model::float_control::DefaultFloatControl;
use charlstm_model::sampler::Sampler;
use charlstm_repository::LoadedModel;

use self::batches::position_of;
use self::reader_timeout::ReaderTimeout;
use crate::batch::Batch;
use crate::error::GenerateError;
use crate::event::FinishReason;
use crate::inbox::{Command, Inbox};
use crate::job::{Job, Next, Outbox};
use crate::message_size::MessageSize;
use crate::partner_policy::PartnerPolicy;
use crate::prefill_budget::PrefillBudget;
use crate::scheduler::{Preemption, Schedulable, Scheduler};
use crate::score::ScoreJob;
use crate::surplus_budget::SurplusBudget;
use crate::text_buffer::TextBuffer;
use crate::worker_load::WorkerLoad;

pub(crate) use self::guard::WorkerGuard;

/// Maximum time that a worker sleeps. It is woken for everything that happens;
/// the bound only makes sure that no mistake in that lasts.
const MAX_SLEEP: Duration = Duration::from_secs(10);

/// Settings of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerConfig {
    /// Number of slots of its batch.
    pub(crate) slots: usize,
    /// A generation ends if its reader takes nothing for this time.
    pub(crate) reader_timeout: Duration,
    /// Time that readers have, at shutdown, to take the text that is there.
    pub(crate) stop_grace: Duration,
}

/// A worker.
pub(crate) struct Worker {
    inbox: Arc<Inbox>,
    load: Arc<WorkerLoad>,
    config: WorkerConfig,
    scheduler: Scheduler<Job>,
    batches: Vec<Batch>,
    parked: Vec<ParkedJob>,
    /// Texts that have ended and were not read to the end.
    unread: Vec<UnreadText>,
    scores: VecDeque<Box<ScoreJob>>,
    sampler: Sampler,
    prefill_budget: PrefillBudget,
    surplus_budget: SurplusBudget,
    partner_policy: PartnerPolicy,
    commands: Vec<Command>,
    /// Readers are woken at the end of the turn, when the step's work is done.
    outbox: Outbox,
    message_size: MessageSize,
}

/// A job whose reader is behind.
struct ParkedJob {
    job: Job,
    timeout: ReaderTimeout,
}

/// A text that has ended and was not read to the end.
struct UnreadText {
    buffer: Weak<TextBuffer>,
    timeout: ReaderTimeout,
}

impl Worker {
    /// `others` are the loads of the other workers.
    pub(crate) fn new(
        inbox: Arc<Inbox>,
        load: Arc<WorkerLoad>,
        others: Vec<Arc<WorkerLoad>>,
        config: WorkerConfig,
    ) -> Self {
        Self {
            inbox,
            load,
            config,
            scheduler: Scheduler::new(config.slots),
            batches: Vec::new(),
            parked: Vec::new(),
            unread: Vec::new(),
            scores: VecDeque::new(),
            sampler: Sampler::default(),
            prefill_budget: PrefillBudget::default(),
            surplus_budget: SurplusBudget::default(),
            partner_policy: PartnerPolicy::new(others),
            commands: Vec::new(),
            outbox: Outbox::default(),
            message_size: MessageSize::default(),
        }
    }

    /// Works until the inbox is stopped, then ends all generations. A panic in
    /// a turn ends the generations that were being computed, and nothing else.
    pub(crate) fn run(mut self) {
        // Sampling and scoring compute on this thread, too.
        let _control = DefaultFloatControl::set();
        loop {
            let wait = self.sleep_time(Instant::now());
            let is_stopped = self.inbox.take(&mut self.commands, wait);
            #[cfg(test)]
            if self.commands.iter().any(|c| matches!(c, Command::Crash)) {
                panic!("a test crashes the worker");
            }
            if is_stopped {
                break;
            }
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                self.recover();
            }
        }
        self.shutdown();
    }

    /// How long the worker may sleep; `None` if there is work.
    fn sleep_time(&self, now: Instant) -> Option<Duration> {
        if !self.scheduler.is_idle() || !self.scores.is_empty() {
            return None;
        }
        let limit = self.config.reader_timeout;
        let parked = self
            .parked
            .iter()
            .flat_map(|parked| [Some(parked.timeout.since + limit), parked.job.deadline()]);
        let unread = self
            .unread
            .iter()
            .map(|unread| Some(unread.timeout.since + limit));
        let first = parked.chain(unread).flatten().min();
        let time = first.map_or(MAX_SLEEP, |first| first.saturating_duration_since(now));
        Some(time.min(MAX_SLEEP))
    }

    /// One turn: at most one budget of prefill, one decode step, one chunk of
    /// scoring.
    fn turn(&mut self) {
        let begin = Instant::now();
        self.take_commands();
        self.reap(begin);
        let is_surplus = self.surplus_budget.is_due() && self.scheduler.has_surplus();
        let moving = Instant::now();
        self.admit(is_surplus);
        if is_surplus {
            // Moves the surplus rows into the batch.
            self.prefill();
            self.surplus_budget.moved(moving.elapsed());
        } else {
            // Moves them out again.
            self.share_slots();
            self.surplus_budget.moved(moving.elapsed());
            self.prefill();
        }
        self.publish_load();
        self.step(is_surplus);
        self.score();
        // Again, since the worker may sleep for long now.
        self.publish_load();
        self.outbox.wake_readers();
        // If all cores are busy, the tokio workers that deliver the text would
        // otherwise not run until the next tick of the system's scheduler,
        // some decode steps later.
        let end = Instant::now();
        std::thread::yield_now();
        self.message_size.turned(end - begin, end.elapsed());
    }

    /// Gives free slots to the jobs that wait for one.
    fn admit(&mut self, is_surplus: bool) {
        let readers = &mut self.outbox.readers;
        self.scheduler
            .admit(is_surplus, |job| readers.extend(job.buffer().start()));
    }

    /// Takes slots from callers that have more than their share.
    fn share_slots(&mut self) {
        while let Some(preemption) = self.scheduler.preempt() {
            let Some(job) = self.take_slot(&preemption) else {
                break;
            };
            self.outbox.readers.extend(job.buffer().flush());
            self.scheduler.preempted(job);
            self.admit(false);
        }
    }

    fn take_slot(&mut self, preemption: &Preemption) -> Option<Job> {
        // A job in prefill slows the others most, and nothing of it is lost.
        if let Some(job) = self.scheduler.take_prefilling(preemption) {
            return Some(job);
        }
        let Preemption { caller, since } = preemption;
        let mut batches = self.batches.iter_mut();
        batches.find_map(|batch| batch.take_row_of(caller, *since))
    }

    fn take_commands(&mut self) {
        for command in std::mem::take(&mut self.commands) {
            match command {
                Command::Generate(job) => self.scheduler.join(*job),
                Command::Score(job) => self.scores.push_back(job),
                Command::DropModel(id) => {
                    for job in self.remove_if(|job| job.model().id == id) {
                        self.finish(job, FinishReason::Cancelled);
                    }
                    self.batches.retain(|batch| batch.model().id != id);
                }
                #[cfg(test)]
                Command::Crash => {}
            }
        }
    }

    /// Removes the jobs that match, wherever they are.
    fn remove_if(&mut self, matches: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut removed = self.scheduler.remove_if(&matches);
        for batch in &mut self.batches {
            for job in batch.remove_if(&matches) {
                self.scheduler.free_slot(job.caller());
                removed.push(job);
            }
        }
        let parked = self.parked.extract_if(.., |parked| matches(&parked.job));
        removed.extend(parked.map(|parked| parked.job));
        removed
    }

    /// Ends the jobs that must end early, and continues parked jobs whose
    /// reader has caught up.
    fn reap(&mut self, now: Instant) {
        for job in self.remove_if(|job| job.must_end(now)) {
            match job.interruption(now) {
                Some(Ok(reason)) => self.finish(job, reason),
                Some(Err(error)) => self.outbox.readers.extend(job.fail(error)),
                // The reader has left: nobody gets the reason.
                None => drop(job.finish(FinishReason::Cancelled)),
            }
        }
        let limit = self.config.reader_timeout;
        let drained = self.parked.extract_if(.., |p| !p.job.buffer().is_parked());
        for parked in drained {
            self.scheduler.rejoin(parked.job);
        }
        let stalled = self.parked.extract_if(.., |parked| {
            parked.timeout.has_passed(parked.job.buffer(), now, limit)
        });
        for parked in stalled {
            self.outbox
                .readers
                .extend(parked.job.fail(GenerateError::Stalled(limit)));
        }
        let readers = &mut self.outbox.readers;
        self.unread.retain_mut(|unread| {
            let Some(buffer) = unread.buffer.upgrade().filter(|b| b.is_unread()) else {
                return false;
            };
            let is_stalled = unread.timeout.has_passed(&buffer, now, limit);
            if is_stalled {
                readers.extend(buffer.give_up(GenerateError::Stalled(limit)));
            }
            !is_stalled
        });
    }

    /// Takes a decode step: one more character for every running generation.
    fn step(&mut self, is_surplus: bool) {
        let begin = Instant::now();
        let is_alone = self.scheduler.occupied() == 1 && self.scores.is_empty();
        let with_partner = self.partner_policy.wants_partner(is_alone, begin);
        self.outbox.min_chars = self.message_size.min_chars(self.scheduler.running());
        let mut has_stepped = false;
        let mut failed = Vec::new();
        for index in 0..self.batches.len() {
            let batch = &mut self.batches[index];
            if batch.is_empty() {
                continue;
            }
            has_stepped = true;
            if let Err(error) = batch.set_partner(with_partner) {
                self.partner_policy.failed(&error);
            }
            let rows = batch.len() as u64;
            self.load.steps.fetch_add(1, Ordering::Relaxed);
            self.load.rows.fetch_add(rows, Ordering::Relaxed);
            match batch.step(&mut self.sampler, begin, &mut self.outbox) {
                Ok(leaving) => {
                    for (job, next) in leaving {
                        self.scheduler.free_slot(job.caller());
                        self.leave_batch(job, next, begin);
                    }
                }
                Err(error) => failed.push((Arc::clone(batch.model()), error)),
            }
        }
        for (model, error) in failed {
            self.drop_batch(&model, &error);
        }
        if has_stepped {
            let time = begin.elapsed();
            self.scheduler.stepped();
            self.prefill_budget.stepped(time);
            self.surplus_budget.stepped(time, is_surplus);
        }
    }

    fn leave_batch(&mut self, job: Job, next: Next, now: Instant) {
        match next {
            Next::Finish(reason) => self.finish(job, reason),
            // A job that continues does not leave its batch.
            Next::Park | Next::Continue => {
                let timeout = ReaderTimeout::new(job.buffer(), now);
                self.parked.push(ParkedJob { job, timeout });
            }
        }
    }

    /// Ends a job, and watches that its text is read.
    fn finish(&mut self, job: Job, reason: FinishReason) {
        let buffer = Arc::clone(job.buffer());
        self.outbox.readers.extend(job.finish(reason));
        if buffer.is_unread() {
            self.unread.push(UnreadText {
                timeout: ReaderTimeout::new(&buffer, Instant::now()),
                buffer: Arc::downgrade(&buffer),
            });
        }
    }

    /// Drops the batch of a model whose device has failed, with the generations
    /// in it, whose states are lost. The next batch may be on another device.
    fn drop_batch(&mut self, model: &LoadedModel, error: &DecodeError) {
        let Some(at) = position_of(&self.batches, model) else {
            return;
        };
        for job in self.batches.remove(at).into_jobs() {
            self.scheduler.free_slot(job.caller());
            self.fail(job, error);
        }
    }

    /// Ends a job whose device failed.
    fn fail(&mut self, job: Job, error: &DecodeError) {
        let error = GenerateError::Internal(error.to_string());
        self.outbox.readers.extend(job.fail(error));
    }

    fn publish_load(&self) {
        let running = self.scheduler.occupied();
        self.load.running.store(running, Ordering::Relaxed);
        let queued = self.scheduler.waiting();
        self.load.queued.store(queued, Ordering::Relaxed);
    }

    /// Ends the generations that were being computed when a turn panicked:
    /// their states cannot be trusted. Their sessions are committed where
    /// their readers are. Waiting and parked jobs continue.
    fn recover(&mut self) {
        tracing::error!("a worker's turn panicked; the generations that it computed are ended");
        self.batches.clear();
        drop(self.scheduler.remove_prefilling());
        self.scheduler.free_all_slots();
        self.scores.clear();
        self.outbox.wake_readers();
    }

    /// Ends all generations, and waits until their readers have taken the
    /// text, at most for the grace time.
    fn shutdown(&mut self) {
        self.take_commands();
        for job in self.remove_if(|_| true) {
            self.finish(job, FinishReason::Shutdown);
        }
        for job in self.scores.drain(..) {
            job.fail(GenerateError::Stopping);
        }
        let end = Instant::now() + self.config.stop_grace;
        loop {
            self.outbox.wake_readers();
            self.unread
                .retain(|unread| unread.buffer.upgrade().is_some_and(|b| b.is_unread()));
            let left = end.saturating_duration_since(Instant::now());
            if self.unread.is_empty() || left.is_zero() {
                break;
            }
            // The inbox is stopped and would return at once.
            std::thread::sleep(left.min(Duration::from_millis(5)));
        }
        self.publish_load();
    }
}

impl Drop for Worker {
    /// Commits the sessions of texts that were not read to the end at their
    /// readers' positions: nobody watches those readers any more.
    fn drop(&mut self) {
        for unread in self.unread.drain(..) {
            let reader = unread
                .buffer
                .upgrade()
                .and_then(|buffer| buffer.give_up(GenerateError::Stopping));
            if let Some(reader) = reader {
                reader.wake();
            }
        }
    }
}
