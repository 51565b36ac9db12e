//! The threads that compute a training step together. All execute the same
//! function, each with its own index, and wait for each other at barriers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::{hint, io, thread};

/// Turns of a waiting loop before the thread offers its core to others: some
/// microseconds, which is what the members differ by if each has its core.
const SPINS: u32 = 2_000;

/// Turns of a waiting loop, each of which has offered the core to others, before
/// a member sleeps until the next task: some milliseconds, as between two steps.
const YIELDS: u32 = 1_000;

/// A member panicked, and with it the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panicked;

/// What the members execute. The lifetime is that of [`Team::run`], which
/// returns only when no member executes it any more.
type Task = &'static (dyn Fn(&Member<'_>) + Sync);

/// A team of threads, of which the calling thread is the first member.
#[derive(Debug)]
pub(crate) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    size: usize,
    task: Mutex<Posted>,
    posted: Condvar,
    /// Members that execute the present task.
    active: AtomicUsize,
    /// Number of tasks so far; changes with `task`.
    number: AtomicUsize,
    /// Members that have not finished the task.
    running: AtomicUsize,
    barrier: Barrier,
}

struct Posted {
    task: Option<Task>,
    /// Members that execute it.
    active: usize,
    number: usize,
    is_ended: bool,
}

/// A barrier whose members spin.
struct Barrier {
    waiting: AtomicUsize,
    /// Changes when all have arrived.
    generation: AtomicUsize,
    panicked: AtomicBool,
}

/// One of the threads, within a task.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    shared: &'a Shared,
    /// From 0.
    pub(crate) index: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Team {
    /// Starts `size - 1` threads, named `train-1` and so on.
    ///
    /// # Errors
    /// A thread could not be started.
    pub(crate) fn start(size: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            size: size.max(1),
            task: Mutex::new(Posted {
                task: None,
                active: 0,
                number: 0,
                is_ended: false,
            }),
            posted: Condvar::new(),
            active: AtomicUsize::new(0),
            number: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            barrier: Barrier {
                waiting: AtomicUsize::new(0),
                generation: AtomicUsize::new(0),
                panicked: AtomicBool::new(false),
            },
        });
        let mut team = Self {
            shared,
            threads: Vec::new(),
        };
        for index in 1..team.size() {
            let shared = Arc::clone(&team.shared);
            let thread = thread::Builder::new()
                .name(format!("train-{index}"))
                .spawn(move || shared.serve(index))?;
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// Returns the number of members.
    pub(crate) fn size(&self) -> usize {
        self.shared.size
    }

    /// Executes a task on the first `active` members, at least one. Blocks until
    /// they have finished it.
    ///
    /// # Errors
    /// A member panicked; the panic has been reported by the panic hook. No
    /// further task can be run then.
    pub(crate) fn run(
        &mut self,
        active: usize,
        task: &(dyn Fn(&Member<'_>) + Sync),
    ) -> Result<(), Panicked> {
        let shared = &*self.shared;
        let active = active.clamp(1, shared.size);
        if shared.barrier.panicked.load(Ordering::Relaxed) {
            return Err(Panicked);
        }
        // SAFETY: only the lifetime changes. This function returns only after
        // `running` is 0, when no member uses the task any more.
        let task: Task =
            unsafe { std::mem::transmute::<&(dyn Fn(&Member<'_>) + Sync), Task>(task) };
        shared.running.store(active - 1, Ordering::Relaxed);
        shared.active.store(active, Ordering::Relaxed);
        if active > 1 {
            {
                let mut posted = shared.lock();
                posted.task = Some(task);
                posted.active = active;
                posted.number += 1;
                shared.number.store(posted.number, Ordering::Release);
            }
            shared.posted.notify_all();
        }
        shared.execute(task, 0);
        wait(|| shared.running.load(Ordering::Acquire) == 0);
        shared.lock().task = None;
        if shared.barrier.panicked.load(Ordering::Relaxed) {
            return Err(Panicked);
        }
        Ok(())
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.lock().is_ended = true;
        self.shared.number.fetch_add(1, Ordering::Release);
        self.shared.posted.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has been reported by `run`.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes the tasks that are posted, until the team is dropped.
    fn serve(&self, index: usize) {
        let mut number = 0;
        loop {
            self.await_number_after(number);
            let mut posted = self.lock();
            while !posted.is_ended && posted.number == number {
                posted = self
                    .posted
                    .wait(posted)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if posted.is_ended {
                return;
            }
            let Some(task) = posted.task else {
                // The others have executed it already.
                number = posted.number;
                continue;
            };
            number = posted.number;
            if index >= posted.active {
                continue;
            }
            drop(posted);
            self.execute(task, index);
            self.running.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits some milliseconds for the next task without sleeping.
    fn await_number_after(&self, number: usize) {
        for turn in 0..SPINS + YIELDS {
            if self.number.load(Ordering::Acquire) != number {
                return;
            }
            pause(turn);
        }
    }

    fn execute(&self, task: Task, index: usize) {
        let member = Member {
            shared: self,
            index,
        };
        if catch_unwind(AssertUnwindSafe(|| task(&member))).is_err() {
            self.barrier.panicked.store(true, Ordering::Release);
        }
    }
}

impl Member<'_> {
    /// Returns the number of members that execute the task.
    pub(crate) fn count(&self) -> usize {
        self.shared.active.load(Ordering::Relaxed)
    }

    /// Returns the member's share of `0..items`: contiguous, and as even as
    /// possible.
    pub(crate) fn share(&self, items: usize) -> std::ops::Range<usize> {
        let count = self.count();
        let part = |index| index * items / count;
        part(self.index)..part(self.index + 1)
    }

    /// Waits until all members have called this. What a member wrote before,
    /// all read afterwards.
    ///
    /// # Panics
    /// If another member has panicked.
    pub(crate) fn barrier(&self) {
        let Barrier {
            waiting,
            generation,
            panicked,
        } = &self.shared.barrier;
        let count = self.count();
        if count == 1 {
            return;
        }
        let current = generation.load(Ordering::Relaxed);
        if waiting.fetch_add(1, Ordering::AcqRel) + 1 == count {
            waiting.store(0, Ordering::Relaxed);
            generation.store(current.wrapping_add(1), Ordering::Release);
            return;
        }
        wait(|| {
            assert!(
                !panicked.load(Ordering::Relaxed),
                "another training thread panicked"
            );
            generation.load(Ordering::Acquire) != current
        });
    }
}

/// Waits for a condition that another member makes true soon.
fn wait(mut condition: impl FnMut() -> bool) {
    let mut turn = 0;
    while !condition() {
        pause(turn);
        turn = turn.saturating_add(1);
    }
}

fn pause(turn: u32) {
    if turn < SPINS {
        hint::spin_loop();
    } else {
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_members_see_what_was_written_before_a_barrier() {
        let mut team = Team::start(3).expect("threads");
        let written: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        for round in 1..200 {
            team.run(3, &|member| {
                for part in 0..5 {
                    written[member.index].store(round * 10 + part, Ordering::Relaxed);
                    member.barrier();
                    for value in &written {
                        assert_eq!(value.load(Ordering::Relaxed), round * 10 + part);
                    }
                    member.barrier();
                }
            })
            .expect("no panic");
        }
    }

    #[test]
    fn a_task_is_executed_by_as_many_members_as_it_asks_for() {
        let mut team = Team::start(4).expect("threads");
        for active in [4, 1, 3, 2, 4, 9, 0] {
            let executed: Mutex<Vec<usize>> = Mutex::default();
            team.run(active, &|member| {
                member.barrier();
                executed.lock().expect("no panic").push(member.index);
                member.barrier();
            })
            .expect("no panic");
            let mut executed = executed.into_inner().expect("no panic");
            executed.sort_unstable();
            assert_eq!(executed, (0..active.clamp(1, 4)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_shares_of_all_members_are_the_whole() {
        let mut team = Team::start(3).expect("threads");
        let shares = Mutex::new(Vec::new());
        team.run(3, &|member| {
            let share = member.share(10);
            shares.lock().expect("no panic").extend(share);
        })
        .expect("no panic");
        let mut shares = shares.into_inner().expect("no panic");
        shares.sort_unstable();
        assert_eq!(shares, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_of_one_member_ends_the_task_of_all_and_is_an_error() {
        let mut team = Team::start(3).expect("threads");
        let outcome = team.run(3, &|member| {
            assert_ne!(member.index, 1, "a panic of the test");
            member.barrier();
        });
        assert_eq!(outcome, Err(Panicked));
        assert_eq!(team.run(3, &|_| ()), Err(Panicked));
    }
}
