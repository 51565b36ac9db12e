//! Tombstones: the names of evicted sessions.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::error::EvictionReason;
use super::name::{Owner, SessionKey};

/// The name of an evicted session: 64 bits of a SHA-256. Two among a million
/// names collide with a chance of one in 40 million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NameDigest(pub(crate) u64);

impl NameDigest {
    /// The digest of a session's name. For sessions of [`Owner::ADMIN`] it is
    /// that of the id alone, as in version 0.1, which knew no owners.
    pub(crate) fn of(key: &SessionKey) -> Self {
        let mut hash = Sha256::new();
        if key.owner.as_str() != Owner::ADMIN {
            hash.update(key.owner.as_str());
            // No name contains a zero byte.
            hash.update([0]);
        }
        hash.update(key.id.as_str());
        let hash: [u8; 32] = hash.finalize().into();
        let (first, _) = hash.split_at(8);
        Self(
            first
                .iter()
                .fold(0, |all, &byte| all << 8 | u64::from(byte)),
        )
    }
}

/// A tombstone as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tombstone {
    /// Whose.
    pub(crate) name: NameDigest,
    /// Why the session was evicted.
    pub(crate) reason: EvictionReason,
    /// Place in the order of evictions.
    pub(crate) sequence: u64,
}

/// The most recent tombstones, some 50 bytes each.
#[derive(Debug)]
pub(super) struct Tombstones {
    max: usize,
    by_name: HashMap<NameDigest, (EvictionReason, u64)>,
    order: BTreeMap<u64, NameDigest>,
}

impl Tombstones {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            by_name: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Why a session was evicted, if that is still known.
    pub(super) fn reason(&self, name: NameDigest) -> Option<EvictionReason> {
        self.by_name.get(&name).map(|(reason, _)| *reason)
    }

    /// Adds a tombstone, and returns those that are dropped for it.
    pub(super) fn insert(&mut self, tombstone: Tombstone) -> Vec<NameDigest> {
        self.remove(tombstone.name);
        let Tombstone {
            name,
            reason,
            sequence,
        } = tombstone;
        self.by_name.insert(name, (reason, sequence));
        self.order.insert(sequence, name);
        let mut dropped = Vec::new();
        while self.order.len() > self.max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.by_name.remove(&oldest);
            dropped.push(oldest);
        }
        dropped
    }

    /// Removes a tombstone.
    pub(super) fn remove(&mut self, name: NameDigest) {
        if let Some((_, sequence)) = self.by_name.remove(&name) {
            self.order.remove(&sequence);
        }
    }

    /// Removes a tombstone again that could not be stored.
    pub(super) fn roll_back(&mut self, tombstone: Tombstone) {
        let stored = self.by_name.get(&tombstone.name);
        if stored == Some(&(tombstone.reason, tombstone.sequence)) {
            self.remove(tombstone.name);
        }
    }
}
