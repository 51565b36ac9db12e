//! How a version stops being served: it is removed, or found damaged.

use super::{ModelId, Repository, RepositoryError};

impl Repository {
    /// Removes a version, sound or damaged. Works on a full disk. A caller that
    /// has loaded the version keeps it.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn remove(&self, id: &ModelId) -> Result<(), RepositoryError> {
        if let Some(sharing) = &self.shared.sharing {
            return self.remove_shared(sharing, id);
        }
        let _changing = self.changing();
        let last_version = {
            let index = self.index();
            index.contains(id)?;
            index.last_version(&id.name).ok()
        };
        let removed = self.shared.storage.remove(id, last_version)?;
        self.index().remove(id);
        self.shared.cache.forget(id);
        removed.free();
        Ok(())
    }

    /// Marks a version as damaged, because its bytes are not those that were
    /// stored. It is not served from now on; if it is a copy of a shared
    /// version, it is fetched again. Does nothing if it was removed.
    pub fn mark_damaged(&self, id: &ModelId, reason: &str) {
        if self.drop_cached_file(id, reason) {
            return;
        }
        if self.index().mark_damaged(id, reason) {
            tracing::error!(model = %id, reason, "a stored model is damaged and is no longer served");
            self.shared.cache.forget(id);
        }
    }
}
