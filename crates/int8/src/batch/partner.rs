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
use crate::packed::{PackedWeights, groups_per_panel};

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
            copy(
                &mut to.next_h,
                &from.next_h,
                first * groups_per_panel::<R>(),
            );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Block, Portable};
    use crate::network::{FloatLayer, FloatNetwork, QuantisedNetwork};
    use crate::shape::Shape;

    const HIDDEN: usize = 40;

    fn weights(num_layers: usize) -> Arc<PackedWeights<Portable>> {
        let numbers: Vec<f32> = (0..4 * HIDDEN * HIDDEN)
            .map(|k| 0.3 * (k as f32 * 12.9898).sin())
            .collect();
        let layer = |inputs: usize| FloatLayer {
            weight_ih: &numbers[..4 * HIDDEN * inputs],
            weight_hh: &numbers,
            bias_ih: &numbers[7..][..4 * HIDDEN],
            bias_hh: &numbers[9..][..4 * HIDDEN],
        };
        let network = FloatNetwork {
            layers: (0..num_layers)
                .map(|index| layer(if index == 0 { 3 } else { HIDDEN }))
                .collect(),
            fc_weight: &numbers[..3 * HIDDEN],
            fc_bias: &numbers[..3],
        };
        let shape = Shape::new(3, HIDDEN, num_layers).expect("a shape");
        let network = QuantisedNetwork::new(shape, &network).expect("a network");
        Arc::new(PackedWeights::new(Portable, &network))
    }

    /// Layers of one row with some state.
    fn layers(weights: &PackedWeights<Portable>) -> Vec<LayerRows<Portable>> {
        (0..weights.shape.num_layers())
            .map(|index| {
                let mut layer = LayerRows::new(weights, 1);
                for (k, group) in layer.h.iter_mut().enumerate() {
                    let h = (k * 37 + index * 11) as u8 % 127;
                    *group = u32::from_le_bytes([h, h.wrapping_neg(), 1, 127 - h]);
                }
                for (k, block) in layer.c.iter_mut().enumerate() {
                    block.values_mut().fill(k as f32 * 0.25 - 0.5);
                }
                layer
            })
            .collect()
    }

    fn compute(
        weights: &PackedWeights<Portable>,
        layers: &mut [LayerRows<Portable>],
        ahead: &mut Ahead<Portable>,
        layer: usize,
        panels: std::ops::Range<usize>,
    ) {
        weights.registers.run(PanelRange {
            step: AheadStep {
                step: BatchStep {
                    weights,
                    layers,
                    tokens: &[0],
                    direction: Direction::Forward,
                    logits: &mut [],
                },
                ahead,
                partner: None,
            },
            layer,
            panels,
        });
    }

    /// Makes a request without pauses, so that a busy machine does not lengthen
    /// the test.
    fn request(partner: &mut Partner<Portable>, layer: usize, layers: &[LayerRows<Portable>]) {
        while !partner.request(layer, 2, layers) {
            (partner.pause, partner.woken) = (0, false);
            thread::yield_now();
        }
        partner.next_pause = FIRST_PAUSE;
    }

    /// Everything that a step writes.
    fn results(
        layers: &[LayerRows<Portable>],
        ahead: &Ahead<Portable>,
    ) -> (Vec<u32>, Vec<u32>, Vec<i32>) {
        let h = layers.iter().flat_map(|layer| layer.next_h.clone());
        let c = layers.iter().flat_map(|layer| &layer.c);
        let c = c.flat_map(|block| block.0.map(f32::to_bits));
        let sums = ahead.sums.iter().flatten().flat_map(|block| block.0);
        (h.collect(), c.collect(), sums.collect())
    }

    #[test]
    fn half_of_a_layer_by_the_partner_is_what_one_thread_computes() {
        for num_layers in 1..=3 {
            let weights = weights(num_layers);
            let mut partner = Partner::start(&weights).expect("a thread");
            for layer in 1..num_layers.max(2) {
                let (mut alone, mut sums_alone) = (layers(&weights), Ahead::new(&weights, 1));
                let all = 0..weights.panels;
                compute(&weights, &mut alone, &mut sums_alone, layer, all);

                let (mut shared, mut sums_shared) = (layers(&weights), Ahead::new(&weights, 1));
                compute(&weights, &mut shared, &mut sums_shared, layer, 0..2);
                assert_ne!(results(&shared, &sums_shared), results(&alone, &sums_alone));
                request(&mut partner, layer, &shared);
                let patience = Duration::from_secs(60);
                assert!(partner.collect(patience, &mut shared, &mut sums_shared));
                assert_eq!(
                    results(&shared, &sums_shared),
                    results(&alone, &sums_alone),
                    "layer {layer} of {num_layers}"
                );
            }
        }
    }

    #[test]
    fn a_partner_that_is_late_changes_nothing_and_is_left_out_for_a_while() {
        let weights = weights(2);
        let mut partner = Partner::start(&weights).expect("a thread");
        let (mut layers, mut ahead) = (layers(&weights), Ahead::new(&weights, 1));
        request(&mut partner, 1, &layers);
        // The state in which a partner without a core would leave it.
        while partner.shared.state.load(Ordering::SeqCst) != DONE {
            thread::yield_now();
        }
        partner.shared.state.store(IDLE, Ordering::SeqCst);
        let before = results(&layers, &ahead);
        assert!(!partner.collect(Duration::ZERO, &mut layers, &mut ahead));
        assert_eq!(results(&layers, &ahead), before);
        for _ in 0..FIRST_PAUSE {
            assert!(!partner.request(1, 2, &layers));
        }
        assert_eq!(partner.next_pause, 2 * FIRST_PAUSE);
    }

    #[test]
    fn a_partner_that_sleeps_ends_with_its_owner() {
        let partner = Partner::start(&weights(1)).expect("a thread");
        while !partner.shared.asleep.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        drop(partner);
    }
}
