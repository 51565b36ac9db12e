//! A second thread that computes half of the panels of a single row.
//!
//! The partner is given copies of what it reads and returns what it computed;
//! it owns no state, so a result that comes too late is thrown away and the
//! caller computes that half itself. Sums are exact, so nobody can see in the
//! numbers who computed them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{hint, io};

use super::rows::{Ahead, LayerRows};
use super::step::{AheadStep, BatchStep, Direction, PanelRange};
use crate::float_control::DefaultFloatControl;
use crate::kernel::Registers;
use crate::packed::{PackedWeights, words_per_panel};

/// How long the partner waits for the next request with its core before it
/// sleeps. Longer than a server needs between two characters of a stream.
const SPIN: Duration = Duration::from_micros(200);

/// Requests that are left out after the partner was late or did not wake: it
/// has no core to itself. Doubled each time it is late again, up to some seconds.
const FIRST_PAUSE: u32 = 64;
const MAX_PAUSE: u32 = 1 << 16;

/// Requests that are left out while the partner wakes: about 100 microseconds.
const WAKING: u32 = 4;

/// Results in time after which the next pause is halved again.
const TRUST: u32 = 256;

/// Nothing to do.
const IDLE: u32 = 0;
/// The job is the partner's.
const REQUESTED: u32 = 1;
/// The job has been computed.
const DONE: u32 = 2;
/// The thread is to end.
const STOP: u32 = 3;

/// What is computed: the panels `first..` of a layer of one row, and for the
/// second layer (1) also the sums ahead of the first.
struct Job<R: Registers> {
    layer: usize,
    first: usize,
    layers: Vec<LayerRows<R>>,
    ahead: Ahead<R>,
    direction: Direction,
}

struct Shared<R: Registers> {
    state: AtomicU32,
    asleep: AtomicBool,
    /// Locked by the caller only when the partner does not have the job, so
    /// nobody waits for the lock.
    job: Mutex<Job<R>>,
}

/// The caller's side.
pub(super) struct Partner<R: Registers> {
    shared: Arc<Shared<R>>,
    thread: Option<JoinHandle<()>>,
    /// Requests still to be left out.
    pause: u32,
    /// The next pause.
    next_pause: u32,
    /// Results in time since `next_pause` changed.
    in_time: u32,
    /// Whether the partner was woken and has not computed anything since.
    woken: bool,
}

impl<R: Registers> Partner<R> {
    /// Starts the thread.
    pub(super) fn start(weights: &Arc<PackedWeights<R>>) -> io::Result<Self> {
        let layers = weights.shape.num_layers();
        let shared = Arc::new(Shared {
            state: AtomicU32::new(IDLE),
            asleep: AtomicBool::new(false),
            job: Mutex::new(Job {
                layer: 1,
                first: 0,
                layers: (0..layers).map(|_| LayerRows::new(weights, 1)).collect(),
                ahead: Ahead::new(weights, 1),
                direction: Direction::Forward,
            }),
        });
        let thread = thread::Builder::new().name("decode-partner".to_owned());
        let thread = thread.spawn({
            let (shared, weights) = (Arc::clone(&shared), Arc::clone(weights));
            move || shared.serve(&weights)
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            pause: 0,
            next_pause: FIRST_PAUSE,
            in_time: 0,
            woken: false,
        })
    }

    /// Asks for the panels `first..` of a layer (and for layer 1 the sums
    /// ahead). Returns whether they were asked for: not if the partner
    /// sleeps, is still busy with a former request, or was late recently.
    pub(super) fn request(&mut self, layer: usize, first: usize, layers: &[LayerRows<R>]) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        if self.shared.asleep.load(Ordering::SeqCst) {
            if self.woken {
                // It is not awake yet, or sleeps again: on a core that is in
                // use, waking it only takes time from others.
                self.be_late();
            } else if let Some(thread) = &self.thread {
                thread.thread().unpark();
                self.woken = true;
                self.pause = WAKING;
            }
            return false;
        }
        if self.shared.state.load(Ordering::Acquire) == REQUESTED {
            return false;
        }
        let mut job = self.job();
        job.layer = layer;
        job.first = first;
        copy(&mut job.layers[layer - 1].h, &layers[layer - 1].h, 0);
        if let Some(from) = layers.get(layer) {
            copy(&mut job.layers[layer].h, &from.h, 0);
            copy(&mut job.layers[layer].c, &from.c, first);
        }
        drop(job);
        self.shared.state.store(REQUESTED, Ordering::SeqCst);
        true
    }

    /// Takes the results of the last request. Waits at most `patience`;
    /// returns false, and changes nothing, if they are not there by then.
    pub(super) fn collect(
        &mut self,
        patience: Duration,
        layers: &mut [LayerRows<R>],
        ahead: &mut Ahead<R>,
    ) -> bool {
        let begin = Instant::now();
        while self.shared.state.load(Ordering::Acquire) != DONE {
            if begin.elapsed() > patience {
                self.be_late();
                return false;
            }
            hint::spin_loop();
        }
        self.woken = false;
        self.in_time += 1;
        if self.in_time == TRUST {
            self.in_time = 0;
            self.next_pause = (self.next_pause / 2).max(FIRST_PAUSE);
        }
        let job = self.job();
        let (layer, first) = (job.layer, job.first);
        if layer == 1 {
            copy(&mut ahead.sums, &job.ahead.sums, first);
        }
        if let Some(to) = layers.get_mut(layer) {
            let from = &job.layers[layer];
            copy(&mut to.next_h, &from.next_h, first * words_per_panel::<R>());
            copy(&mut to.c, &from.c, first);
        }
        true
    }

    fn be_late(&mut self) {
        self.pause = self.next_pause;
        self.next_pause = (self.next_pause * 2).min(MAX_PAUSE);
        self.in_time = 0;
        self.woken = false;
    }

    fn job(&self) -> std::sync::MutexGuard<'_, Job<R>> {
        // A partner that panicked is never `DONE` again, so that what it left
        // is not used.
        self.shared
            .job
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Registers> Drop for Partner<R> {
    fn drop(&mut self) {
        self.shared.state.store(STOP, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic in it has already been reported and changed nothing.
            let _ = thread.join();
        }
    }
}

/// Copies what `to` has room for, from index `first` on.
fn copy<T: Copy>(to: &mut [T], from: &[T], first: usize) {
    let end = to.len().min(from.len());
    to[first..end].copy_from_slice(&from[first..end]);
}

impl<R: Registers> Shared<R> {
    /// The partner's thread.
    fn serve(&self, weights: &PackedWeights<R>) {
        let _control = DefaultFloatControl::set();
        let mut idle_since = Instant::now();
        loop {
            match self.state.load(Ordering::SeqCst) {
                STOP => return,
                REQUESTED => {
                    self.compute(weights);
                    // Fails only if the state is `STOP` by now.
                    let _ = self.state.compare_exchange(
                        REQUESTED,
                        DONE,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    );
                    idle_since = Instant::now();
                }
                _ if idle_since.elapsed() < SPIN => hint::spin_loop(),
                _ => {
                    self.asleep.store(true, Ordering::SeqCst);
                    // A request that was made before the caller could see
                    // that is not slept over.
                    if !matches!(self.state.load(Ordering::SeqCst), REQUESTED | STOP) {
                        thread::park();
                    }
                    self.asleep.store(false, Ordering::SeqCst);
                    idle_since = Instant::now();
                }
            }
        }
    }

    fn compute(&self, weights: &PackedWeights<R>) {
        let mut job = self.job.lock().unwrap_or_else(PoisonError::into_inner);
        let job = &mut *job;
        weights.registers.run(PanelRange {
            step: AheadStep {
                step: BatchStep {
                    weights,
                    layers: &mut job.layers,
                    // One row; its character plays no role here.
                    tokens: &[0],
                    direction: job.direction,
                    logits: &mut [],
                },
                ahead: &mut job.ahead,
                partner: None,
            },
            layer: job.layer,
            panels: job.first..weights.panels,
        });
        job.direction = job.direction.reversed();
    }
}
