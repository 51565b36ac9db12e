//! The names of sessions that were let go, so that an evicted session is not
//! taken for a new one.

use std::collections::{HashMap, VecDeque};

use sha2::{Digest, Sha256};

use super::id::SessionId;

/// Why a session was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was not used for too long.
    Idle,
    /// Room was needed for others.
    Capacity,
    /// It was lost when the server stopped.
    Restart,
}

/// The most recently tombstones names with their reasons; the oldest give way
/// when there are too many. A name is kept as 64 bits of its SHA-256, stable
/// over restarts: two among a million names fall together with a chance of
/// one in 40 million.
#[derive(Debug)]
pub(super) struct Tombstones {
    most: usize,
    reasons: HashMap<u64, Reason>,
    order: VecDeque<u64>,
}

impl Tombstones {
    /// An empty memory for `most` names, about 40 bytes each.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            reasons: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Remembers a name.
    pub(super) fn insert(&mut self, id: &SessionId, reason: Reason) {
        self.insert_digest(digest(id), reason);
    }

    /// Remembers a name of which only the digest is known.
    pub(super) fn insert_digest(&mut self, digest: u64, reason: Reason) {
        if self.reasons.insert(digest, reason).is_none() {
            self.order.push_back(digest);
        }
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.reasons.remove(&oldest);
            }
        }
    }

    /// Why a name was let go, if it is remembered.
    pub(super) fn reason(&self, id: &SessionId) -> Option<Reason> {
        self.reasons.get(&digest(id)).copied()
    }

    /// Lets a name be used again. Returns whether it was remembered.
    pub(super) fn remove(&mut self, id: &SessionId) -> bool {
        if self.reasons.is_empty() {
            return false;
        }
        let digest = digest(id);
        let known = self.reasons.remove(&digest).is_some();
        if known {
            // Linear, and rare: only someone who names a lost session and
            // wants a new one under the same name comes here.
            self.order.retain(|&other| other != digest);
        }
        known
    }

    /// Digests and reasons, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Reason)> + '_ {
        self.order
            .iter()
            .filter_map(|digest| Some((*digest, *self.reasons.get(digest)?)))
    }
}

/// The first 64 bits of the SHA-256 of a name.
fn digest(id: &SessionId) -> u64 {
    let hash = Sha256::digest(id.as_str().as_bytes());
    hash.iter()
        .take(8)
        .fold(0, |digest, &byte| (digest << 8) | u64::from(byte))
}
