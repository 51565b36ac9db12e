//! The contents of the repository, in memory: everything except the weights is
//! answered from here.

use std::collections::BTreeMap;
use std::sync::Arc;

use charlstm_store::session::Owner;

use super::quantisation::Quantisation;
use super::{DamagedModel, ModelDescription, ModelId, RepositoryError};

/// Names that an error lists before it says "and N more".
const NAMES_IN_ERRORS: usize = 10;

/// One version.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Sound(Arc<ModelDescription>),
    /// What is wrong with it.
    Damaged(String),
}

#[derive(Debug, Default)]
struct Versions {
    /// Highest version number that was ever used.
    last: u64,
    /// Why `last` may be too low, if it may be.
    last_unknown: Option<String>,
    /// Who published the first version.
    owner: Option<Owner>,
    entries: BTreeMap<u64, Entry>,
}

impl Versions {
    fn sound(&self) -> impl DoubleEndedIterator<Item = &Arc<ModelDescription>> {
        self.entries.values().filter_map(|entry| match entry {
            Entry::Sound(description) => Some(description),
            Entry::Damaged(_) => None,
        })
    }
}

/// All versions of all models.
#[derive(Debug, Default)]
pub(super) struct Index {
    names: BTreeMap<String, Versions>,
}

impl Index {
    pub(super) fn insert(&mut self, id: ModelId, entry: Entry) {
        let versions = self.names.entry(id.name).or_default();
        versions.last = versions.last.max(id.version);
        versions.entries.insert(id.version, entry);
    }

    /// Marks a version as damaged, if it is still stored. Returns whether it
    /// is.
    pub(super) fn mark_damaged(&mut self, id: &ModelId, reason: &str) -> bool {
        let versions = self.names.get_mut(&id.name);
        match versions.and_then(|versions| versions.entries.get_mut(&id.version)) {
            Some(entry) => {
                *entry = Entry::Damaged(reason.to_owned());
                true
            }
            None => false,
        }
    }

    /// Records what int8 costs a version, if it is still stored.
    pub(super) fn record_quantisation(&mut self, id: &ModelId, quantisation: Quantisation) {
        let versions = self.names.get_mut(&id.name);
        let entry = versions.and_then(|versions| versions.entries.get_mut(&id.version));
        if let Some(Entry::Sound(description)) = entry {
            Arc::make_mut(description).quantisation = Some(quantisation);
        }
    }

    /// Records a number that was used by a version that no longer exists.
    pub(super) fn record_last_version(&mut self, name: &str, version: u64) {
        let versions = self.names.entry(name.to_owned()).or_default();
        versions.last = versions.last.max(version);
    }

    /// Records that the numbers of removed versions of a name are unknown.
    pub(super) fn last_version_is_unknown(&mut self, name: &str, reason: String) {
        let versions = self.names.entry(name.to_owned()).or_default();
        versions.last_unknown = Some(reason);
    }

    /// Records who published the first version of a name.
    pub(super) fn record_owner(&mut self, name: &str, owner: Owner) {
        let versions = self.names.entry(name.to_owned()).or_default();
        versions.owner = Some(owner);
    }

    /// Returns the owner that is recorded, also if nothing was published.
    pub(super) fn recorded_owner(&self, name: &str) -> Owner {
        let recorded = self
            .names
            .get(name)
            .and_then(|versions| versions.owner.clone());
        recorded.unwrap_or_else(Owner::admin)
    }

    /// Returns the owner of a name; `None` if nothing was ever published under
    /// it. What was published before there were principals belongs to `admin`.
    pub(super) fn owner(&self, name: &str) -> Option<Owner> {
        let versions = self.names.get(name)?;
        // Without a version, the record is from a publication that failed.
        let is_used = versions.last > 0 || versions.last_unknown.is_some();
        is_used.then(|| self.recorded_owner(name))
    }

    /// Removes a version; its number stays used.
    pub(super) fn remove(&mut self, id: &ModelId) {
        if let Some(versions) = self.names.get_mut(&id.name) {
            versions.entries.remove(&id.version);
        }
    }

    /// Returns the highest version number of a name that was ever used; 0 if
    /// none was.
    pub(super) fn last_version(&self, name: &str) -> Result<u64, RepositoryError> {
        let Some(versions) = self.names.get(name) else {
            return Ok(0);
        };
        match &versions.last_unknown {
            None => Ok(versions.last),
            Some(reason) => Err(RepositoryError::VersionsUnknown {
                name: name.to_owned(),
                reason: reason.clone(),
            }),
        }
    }

    pub(super) fn contains(&self, id: &ModelId) -> Result<(), RepositoryError> {
        self.entry(&id.name, id.version).map(|_| ())
    }

    pub(super) fn get(
        &self,
        name: &str,
        version: u64,
    ) -> Result<Arc<ModelDescription>, RepositoryError> {
        match self.entry(name, version)? {
            Entry::Sound(description) => Ok(Arc::clone(description)),
            Entry::Damaged(reason) => Err(RepositoryError::Damaged {
                id: ModelId {
                    name: name.to_owned(),
                    version,
                },
                reason: reason.clone(),
            }),
        }
    }

    /// Returns the newest sound version of a name. If all are damaged, the
    /// error describes the newest.
    pub(super) fn latest(&self, name: &str) -> Result<Arc<ModelDescription>, RepositoryError> {
        let versions = self.names.get(name);
        if let Some(latest) = versions.and_then(|versions| versions.sound().next_back()) {
            return Ok(Arc::clone(latest));
        }
        match versions.and_then(|versions| versions.entries.last_key_value()) {
            Some((&version, _)) => self.get(name, version),
            None => Err(self.not_found(name.to_owned())),
        }
    }

    /// Returns the newest version of the only model. A damaged model counts:
    /// no other one is used in its place.
    pub(super) fn only(&self) -> Result<ModelId, RepositoryError> {
        let names: Vec<String> = self.stored_names().cloned().collect();
        match names.as_slice() {
            [] => Err(RepositoryError::NoModels),
            [name] => Ok(self.latest(name)?.id.clone()),
            _ => Err(RepositoryError::Ambiguous {
                available: list_of(&names),
            }),
        }
    }

    /// Returns every name that was ever used, with its owner and its highest
    /// version number.
    pub(super) fn names(&self) -> Result<Vec<(String, Owner, u64)>, RepositoryError> {
        let used = self.names.keys().filter_map(|name| {
            let owner = self.owner(name)?;
            Some(
                self.last_version(name)
                    .map(|last| (name.clone(), owner, last)),
            )
        });
        used.collect()
    }

    pub(super) fn list(&self) -> Vec<Arc<ModelDescription>> {
        self.names
            .values()
            .filter_map(|versions| versions.sound().next_back().cloned())
            .collect()
    }

    pub(super) fn count(&self) -> usize {
        self.names
            .values()
            .filter(|versions| versions.sound().next().is_some())
            .count()
    }

    pub(super) fn versions(&self, name: &str) -> Vec<u64> {
        self.names.get(name).map_or_else(Vec::new, |versions| {
            versions.sound().map(|one| one.id.version).collect()
        })
    }

    /// Returns all versions of a name on disk, including damaged ones.
    pub(super) fn stored(&self, name: &str) -> Result<Vec<ModelId>, RepositoryError> {
        let entries = self.names.get(name).map(|versions| &versions.entries);
        match entries.filter(|entries| !entries.is_empty()) {
            None => Err(self.not_found(name.to_owned())),
            Some(entries) => Ok(entries
                .keys()
                .map(|&version| ModelId {
                    name: name.to_owned(),
                    version,
                })
                .collect()),
        }
    }

    pub(super) fn damaged(&self) -> Vec<DamagedModel> {
        let mut damaged = Vec::new();
        for (name, versions) in &self.names {
            for (&version, entry) in &versions.entries {
                if let Entry::Damaged(reason) = entry {
                    damaged.push(DamagedModel {
                        id: ModelId {
                            name: name.clone(),
                            version,
                        },
                        reason: reason.clone(),
                    });
                }
            }
        }
        damaged
    }

    fn entry(&self, name: &str, version: u64) -> Result<&Entry, RepositoryError> {
        self.names
            .get(name)
            .and_then(|versions| versions.entries.get(&version))
            .ok_or_else(|| self.not_found(format!("{name}@{version}")))
    }

    fn not_found(&self, reference: String) -> RepositoryError {
        let name = reference.split('@').next().unwrap_or_default();
        let newest: Vec<String> = self
            .versions(name)
            .iter()
            .rev()
            .map(|version| format!("{name}@{version}"))
            .collect();
        let available = if newest.is_empty() {
            let list = self.list();
            let mut names: Vec<String> = list.iter().map(|model| model.id.name.clone()).collect();
            // The most similar name first: it was probably meant.
            names.sort_by_cached_key(|known| strsim::damerau_levenshtein(name, known));
            names
        } else {
            newest
        };
        RepositoryError::NotFound {
            available: list_of(&available),
            reference,
        }
    }

    /// The names that have a version on disk, sound or damaged.
    fn stored_names(&self) -> impl Iterator<Item = &String> {
        self.names
            .iter()
            .filter(|(_, versions)| !versions.entries.is_empty())
            .map(|(name, _)| name)
    }
}

fn list_of(names: &[String]) -> String {
    let (shown, rest) = names.split_at(names.len().min(NAMES_IN_ERRORS));
    match (shown, rest.len()) {
        ([], _) => "none yet".to_owned(),
        (_, 0) => shown.join(", "),
        (_, more) => format!("{} and {more} more", shown.join(", ")),
    }
}
