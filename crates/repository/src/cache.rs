//! Models in memory: each version at most once, shared by all who use it,
//! and kept for a while after its last use.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{LoadedModel, ModelId};

/// Held while its version is loaded, so that others wait for it.
type Slot = Arc<Mutex<Weak<LoadedModel>>>;

#[derive(Debug)]
pub(super) struct Cache {
    slots: Mutex<HashMap<ModelId, Slot>>,
    /// The most recently used last.
    recent: Mutex<VecDeque<Arc<LoadedModel>>>,
    /// Bytes of weights that `recent` may keep; the newest stays in any case.
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

    /// Returns the loaded version, or loads it. A failure is told to the one
    /// who loaded; those who waited try for themselves.
    pub(super) fn get_or_load<E>(
        &self,
        id: &ModelId,
        load: impl FnOnce() -> Result<LoadedModel, E>,
    ) -> Result<Arc<LoadedModel>, E> {
        let slot = Arc::clone(lock(&self.slots).entry(id.clone()).or_default());
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
        self.keep(&model);
        Ok(model)
    }

    pub(super) fn forget(&self, id: &ModelId) {
        lock(&self.slots).remove(id);
        let mut recent = lock(&self.recent);
        // Dropped after the lock: freeing the weights takes a while.
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
        loaded.sort_by(|a, b| a.id.cmp(&b.id));
        loaded
    }

    fn keep(&self, model: &Arc<LoadedModel>) {
        let mut recent = lock(&self.recent);
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
        // Slots of versions that nobody holds or waits for are only weight.
        lock(&self.slots).retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot.try_lock().map_or(true, |weak| weak.strong_count() > 0)
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
