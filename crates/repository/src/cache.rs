//! Models in memory: each version at most once in each precision, shared by all
//! its users, and kept for a while after its last use.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use charlstm_model::decode_step::Precision;

use super::{LoadedModel, ModelId};

/// A version in a precision.
type Key = (ModelId, Precision);

/// Held while its version is loaded, so that other callers wait for it.
type Slot = Arc<Mutex<Weak<LoadedModel>>>;

#[derive(Debug)]
pub(super) struct Cache {
    slots: Mutex<HashMap<Key, Slot>>,
    /// Least recently used first.
    recent: Mutex<VecDeque<Arc<LoadedModel>>>,
    /// Maximum bytes of weights in `recent`; the newest stays in any case.
    budget_bytes: usize,
}

impl Cache {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Self {
            slots: Mutex::default(),
            recent: Mutex::default(),
            budget_bytes,
        }
    }

    /// Returns the loaded version, or loads it. If loading fails, only the
    /// caller that loaded gets the error; those that waited try themselves.
    ///
    /// The model is kept after its last use only if `is_stored`, which is
    /// asked after loading: the version may have been removed meanwhile.
    pub(super) fn get_or_load<E>(
        &self,
        key: &Key,
        load: impl FnOnce() -> Result<LoadedModel, E>,
        is_stored: impl FnOnce() -> bool,
    ) -> Result<Arc<LoadedModel>, E> {
        let slot = Arc::clone(lock(&self.slots).entry(key.clone()).or_default());
        let mut loaded = lock(&slot);
        let model = match loaded.upgrade() {
            Some(model) => model,
            None => {
                let model = Arc::new(load()?);
                *loaded = Arc::downgrade(&model);
                model
            }
        };
        drop(loaded);
        self.keep(&model, is_stored);
        Ok(model)
    }

    /// Returns the version if it is loaded, without waiting for one that is
    /// being loaded.
    pub(super) fn get(
        &self,
        key: &Key,
        is_stored: impl FnOnce() -> bool,
    ) -> Option<Arc<LoadedModel>> {
        let slot = Arc::clone(lock(&self.slots).get(key)?);
        let model = slot.try_lock().ok()?.upgrade()?;
        self.keep(&model, is_stored);
        Some(model)
    }

    /// Drops a version that is no longer stored, in all precisions. Its users
    /// keep it. Must be called after `is_stored` of [`Self::get_or_load`] has
    /// become false.
    pub(super) fn forget(&self, id: &ModelId) {
        lock(&self.slots).retain(|(of, _), _| of != id);
        let mut recent = lock(&self.recent);
        // Dropped after the lock is released: freeing weights takes a while.
        let (gone, kept): (Vec<_>, Vec<_>) = recent.drain(..).partition(|model| model.id == *id);
        recent.extend(kept);
        drop(recent);
        drop(gone);
    }

    pub(super) fn loaded(&self) -> Vec<Arc<LoadedModel>> {
        let slots: Vec<Slot> = lock(&self.slots).values().cloned().collect();
        let mut loaded: Vec<_> = slots
            .iter()
            // A slot that is locked is being loaded.
            .filter_map(|slot| slot.try_lock().ok()?.upgrade())
            .collect();
        loaded.sort_by(|a, b| (&a.id, a.precision()).cmp(&(&b.id, b.precision())));
        loaded
    }

    fn keep(&self, model: &Arc<LoadedModel>, is_stored: impl FnOnce() -> bool) {
        let mut recent = lock(&self.recent);
        // Under the lock: a removal either is seen here or finds the model.
        if !is_stored() {
            return;
        }
        recent.retain(|other| !Arc::ptr_eq(other, model));
        recent.push_back(Arc::clone(model));
        let mut bytes: usize = recent.iter().map(|model| model.weights.bytes()).sum();
        let mut gone = Vec::new();
        while bytes > self.budget_bytes && recent.len() > 1 {
            if let Some(oldest) = recent.pop_front() {
                bytes -= oldest.weights.bytes();
                gone.push(oldest);
            }
        }
        drop(recent);
        drop(gone);
        // Slots of versions that nobody holds or waits for are removed.
        lock(&self.slots).retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot.try_lock().map_or(true, |weak| weak.strong_count() > 0)
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data behind these locks is valid between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
