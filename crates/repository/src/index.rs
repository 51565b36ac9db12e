//! What the repository holds, in memory: every question but the weights
//! themselves is answered from here.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{DamagedModel, ModelDescription, ModelId, RepositoryError};

/// Names that an error lists before it says "and N more".
const NAMES_IN_ERRORS: usize = 10;

/// One version, as far as it can be served.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Sound(Arc<ModelDescription>),
    Damaged(String),
}

#[derive(Debug, Default)]
struct Versions {
    /// The highest number that was ever given.
    last: u64,
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

    /// Takes note of a number that was given to a version that is gone.
    pub(super) fn note_last_version(&mut self, name: &str, version: u64) {
        let versions = self.names.entry(name.to_owned()).or_default();
        versions.last = versions.last.max(version);
    }

    pub(super) fn remove(&mut self, id: &ModelId) {
        if let Some(versions) = self.names.get_mut(&id.name) {
            versions.entries.remove(&id.version);
        }
    }

    /// The highest number that was ever given; 0 where none was.
    pub(super) fn last_version(&self, name: &str) -> u64 {
        self.names.get(name).map_or(0, |versions| versions.last)
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

    /// The newest sound version; where all are damaged, the newest tells why.
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

    /// The newest version of the only model there is.
    pub(super) fn only(&self) -> Result<ModelId, RepositoryError> {
        match self.list().as_slice() {
            [] => Err(RepositoryError::NoModels),
            [one] => Ok(one.id.clone()),
            _ => Err(RepositoryError::Ambiguous {
                available: in_words(&self.model_names()),
            }),
        }
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

    /// All versions that are on disk, damaged ones too.
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
            let mut names = self.model_names();
            // What was probably meant stands first.
            names.sort_by_cached_key(|known| strsim::damerau_levenshtein(name, known));
            names
        } else {
            newest
        };
        RepositoryError::NotFound {
            available: in_words(&available),
            reference,
        }
    }

    fn model_names(&self) -> Vec<String> {
        let list = self.list();
        list.iter().map(|model| model.id.name.clone()).collect()
    }
}

fn in_words(names: &[String]) -> String {
    let (shown, rest) = names.split_at(names.len().min(NAMES_IN_ERRORS));
    match (shown, rest.len()) {
        ([], _) => "none yet".to_owned(),
        (_, 0) => shown.join(", "),
        (_, more) => format!("{} and {more} more", shown.join(", ")),
    }
}
