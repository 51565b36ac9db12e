//! States after prompts that were fed before, so that a prompt with the same
//! beginning is not fed again. A state is exact and depends on nothing but the
//! model, the arithmetic and the characters, so the cache has no effect other
//! than speed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use charlstm_model::decode_step::{Arithmetic, HiddenState};
use charlstm_store::session::Owner;
use sha2::{Digest, Sha256};

/// Shorter prompts are fed again: that takes less than a millisecond, and
/// their states would displace others.
const MIN_CHARS: usize = 32;

/// Distance between two states that are kept of one prompt, at its beginning.
const BOUNDARY_CHARS: usize = 256;

/// The distance grows with the position: from there on, there are this many
/// states for each doubling, so that one long prompt does not fill the cache.
const BOUNDARIES_PER_DOUBLING: usize = 16;

/// Memory that an entry takes besides its state.
const ENTRY_BYTES: u64 = 250;

/// First bytes of what is hashed: names the layout.
const LABEL: &[u8] = b"charlstm prompt 1\0";

/// Hash of everything that a state depends on, and of who has caused it.
type Key = [u8; 32];

/// What the states of a prompt depend on besides its characters.
pub(crate) struct PromptScope<'a> {
    /// Digest of the model.
    pub(crate) digest: &'a [u8; 32],
    pub(crate) arithmetic: Arithmetic,
    /// A principal does not find the states of others: the time to the first
    /// character would tell what they have sent.
    pub(crate) owner: &'a Owner,
}

/// The states, the least recently used of which make room when the limit on
/// bytes is reached.
#[derive(Debug)]
pub(crate) struct PromptCache {
    max_bytes: u64,
    entries: Mutex<Entries>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug, Default)]
struct Entries {
    bytes: u64,
    uses: u64,
    states: HashMap<Key, Entry>,
    /// Keys by last use.
    order: BTreeMap<u64, Key>,
}

#[derive(Debug)]
struct Entry {
    state: Arc<HiddenState>,
    bytes: u64,
    used: u64,
}

/// Use of a prompt cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptCacheStats {
    /// Prompts of which a part was found.
    pub hits: u64,
    /// Prompts of which nothing was found. Those that are too short to be kept
    /// do not count.
    pub misses: u64,
    /// Memory that the states take, in bytes.
    pub bytes: u64,
}

/// A prompt that is about to be fed.
#[derive(Debug)]
pub(crate) struct CachedPrompt {
    /// The longest part that was found, in characters, and the state after it.
    pub(crate) found: Option<(usize, Arc<HiddenState>)>,
    /// The states that are to be kept while the rest is fed.
    pub(crate) rest: PromptRecorder,
}

/// Keeps the states of one prompt while it is fed.
#[derive(Debug)]
pub(crate) struct PromptRecorder {
    cache: Arc<PromptCache>,
    /// Positions whose states are to be kept, ascending.
    boundaries: VecDeque<(usize, Key)>,
}

impl PromptCache {
    /// An empty cache of at most `max_bytes`; 0 keeps nothing.
    pub(crate) fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            max_bytes,
            entries: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// Looks up a prompt that is fed from the zero state; all of `tokens` but
    /// the last are fed before the first decode step. Returns `None` if the
    /// prompt is too short. Hashes the tokens: 10 ms for a million.
    pub(crate) fn look_up(
        self: &Arc<Self>,
        scope: &PromptScope<'_>,
        tokens: &[u32],
    ) -> Option<CachedPrompt> {
        let chars = tokens.len().saturating_sub(1);
        if chars < MIN_CHARS || self.max_bytes == 0 {
            return None;
        }
        let boundaries = keys(scope, &tokens[..chars]);
        let mut entries = self.lock();
        let found = boundaries
            .iter()
            .rev()
            .find_map(|(at, key)| Some((*at, entries.find(key)?)));
        drop(entries);
        let counter = if found.is_some() {
            &self.hits
        } else {
            &self.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let fed = found.as_ref().map_or(0, |(at, _)| *at);
        let rest = boundaries.into_iter().filter(|(at, _)| *at > fed);
        Some(CachedPrompt {
            found,
            rest: PromptRecorder {
                cache: Arc::clone(self),
                boundaries: rest.collect(),
            },
        })
    }

    pub(crate) fn stats(&self) -> PromptCacheStats {
        PromptCacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            bytes: self.lock().bytes,
        }
    }

    fn insert(&self, key: Key, state: &HiddenState) {
        let bytes = state.byte_len() as u64 + ENTRY_BYTES;
        if bytes > self.max_bytes {
            return;
        }
        let state = Arc::new(state.clone());
        let mut entries = self.lock();
        entries.insert(key, state, bytes);
        entries.shrink_to(self.max_bytes);
    }

    /// The entries are consistent between any two statements that can panic.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn find(&mut self, key: &Key) -> Option<Arc<HiddenState>> {
        let entry = self.states.get_mut(key)?;
        self.uses += 1;
        self.order.remove(&entry.used);
        self.order.insert(self.uses, *key);
        entry.used = self.uses;
        Some(Arc::clone(&entry.state))
    }

    fn insert(&mut self, key: Key, state: Arc<HiddenState>, bytes: u64) {
        self.uses += 1;
        let used = self.uses;
        let entry = Entry { state, bytes, used };
        if let Some(former) = self.states.insert(key, entry) {
            self.order.remove(&former.used);
            self.bytes -= former.bytes;
        }
        self.order.insert(used, key);
        self.bytes += bytes;
    }

    fn shrink_to(&mut self, max_bytes: u64) {
        while self.bytes > max_bytes
            && let Some((_, key)) = self.order.pop_first()
        {
            if let Some(entry) = self.states.remove(&key) {
                self.bytes -= entry.bytes;
            }
        }
    }
}

impl PromptRecorder {
    /// The next position whose state is to be kept.
    pub(crate) fn next_boundary(&self) -> Option<usize> {
        self.boundaries.front().map(|(at, _)| *at)
    }

    /// Keeps the state after `fed` characters, if it is one of those to be
    /// kept.
    pub(crate) fn reached(&mut self, fed: usize, state: &HiddenState) {
        if let Some((_, key)) = self.boundaries.pop_front_if(|(at, _)| *at == fed) {
            self.cache.insert(key, state);
        }
    }
}

/// The positions of a prompt whose states are kept, ascending, the last of them
/// at its end, each with the key of its state: SHA-256 of [`LABEL`], the digest
/// of the model, the arithmetic, the owner and the token ids up to there.
fn keys(scope: &PromptScope<'_>, tokens: &[u32]) -> Vec<(usize, Key)> {
    let owner = scope.owner.as_str();
    let mut hash = Sha256::new();
    hash.update(LABEL);
    hash.update(scope.digest);
    hash.update([scope.arithmetic.precision as u8]);
    hash.update(scope.arithmetic.revision.to_le_bytes());
    hash.update((owner.len() as u64).to_le_bytes());
    hash.update(owner);
    let mut keys = Vec::new();
    let mut bytes = Vec::new();
    let mut hashed = 0;
    for at in boundaries(tokens.len()) {
        bytes.clear();
        let part = &tokens[hashed..at];
        bytes.extend(part.iter().flat_map(|token| token.to_le_bytes()));
        hash.update(&bytes);
        hashed = at;
        keys.push((at, hash.clone().finalize().into()));
    }
    keys
}

/// The positions in a prompt of `chars` characters.
fn boundaries(chars: usize) -> impl Iterator<Item = usize> {
    let next = |at: &usize| {
        let power = 1 << at.ilog2();
        Some(at + (power / BOUNDARIES_PER_DOUBLING).max(BOUNDARY_CHARS))
    };
    std::iter::successors(Some(BOUNDARY_CHARS), next)
        .take_while(move |at| *at < chars)
        .chain([chars])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DIGEST: [u8; 32] = [7; 32];

    fn state(value: f32) -> HiddenState {
        HiddenState::Float32([value; 8].into())
    }

    fn tokens(count: usize) -> Vec<u32> {
        (0..count as u32).collect()
    }

    fn look_up(cache: &Arc<PromptCache>, owner: &Owner, tokens: &[u32]) -> CachedPrompt {
        let scope = PromptScope {
            digest: &DIGEST,
            arithmetic: Arithmetic::FLOAT32,
            owner,
        };
        cache.look_up(&scope, tokens).unwrap()
    }

    /// Feeds a prompt; the state is the number of characters.
    fn feed(cache: &Arc<PromptCache>, tokens: &[u32]) {
        let mut rest = look_up(cache, &Owner::admin(), tokens).rest;
        while let Some(at) = rest.next_boundary() {
            rest.reached(at - 1, &state(-1.0));
            rest.reached(at, &state(at as f32));
        }
    }

    /// How much of a prompt is found.
    fn found(cache: &Arc<PromptCache>, owner: &Owner, tokens: &[u32]) -> usize {
        let found = look_up(cache, owner, tokens).found;
        found.map_or(0, |(at, found)| {
            assert_eq!(*found, state(at as f32));
            at
        })
    }

    #[test]
    fn boundaries_become_rarer_with_the_position_and_the_last_is_the_end() {
        let all: Vec<usize> = boundaries(1000).collect();
        assert_eq!(all, [256, 512, 768, 1000]);
        assert_eq!(boundaries(40).collect::<Vec<_>>(), [40]);
        assert_eq!(boundaries(512).collect::<Vec<_>>(), [256, 512]);
        assert!(boundaries(1_000_000).count() < 150);
    }

    #[test]
    fn the_longest_known_beginning_of_a_prompt_is_found() {
        let cache = PromptCache::new(1_000_000);
        let admin = Owner::admin();
        assert_eq!(found(&cache, &admin, &tokens(1001)), 0);
        feed(&cache, &tokens(1001));
        assert_eq!(found(&cache, &admin, &tokens(1001)), 1000);
        // Another end, and one beyond it.
        let mut other = tokens(1001);
        other[900] = 5;
        assert_eq!(found(&cache, &admin, &other), 768);
        assert_eq!(found(&cache, &admin, &tokens(5000)), 768);
        assert_eq!(found(&cache, &admin, &tokens(600)), 512);
        other[0] = 5;
        assert_eq!(found(&cache, &admin, &other), 0);
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (4, 3));
    }

    #[test]
    fn a_prompt_of_another_owner_model_or_arithmetic_is_not_found() {
        let cache = PromptCache::new(1_000_000);
        feed(&cache, &tokens(100));
        assert_eq!(found(&cache, &Owner::new("bob").unwrap(), &tokens(100)), 0);
        for (digest, arithmetic) in [([8; 32], Arithmetic::FLOAT32), (DIGEST, Arithmetic::INT8)] {
            let scope = PromptScope {
                digest: &digest,
                arithmetic,
                owner: &Owner::admin(),
            };
            assert!(cache.look_up(&scope, &tokens(100)).unwrap().found.is_none());
        }
    }

    #[test]
    fn the_least_recently_used_states_make_room() {
        let entry = 32 + ENTRY_BYTES;
        let cache = PromptCache::new(3 * entry);
        let prompt = |first: u32| {
            let mut tokens = tokens(100);
            tokens[0] = first;
            tokens
        };
        for first in 1..=3 {
            feed(&cache, &prompt(first));
        }
        assert_eq!(found(&cache, &Owner::admin(), &prompt(1)), 99);
        feed(&cache, &prompt(4));
        assert_eq!(cache.stats().bytes, 3 * entry);
        let is_found = |first| found(&cache, &Owner::admin(), &prompt(first)) > 0;
        assert!(is_found(1) && !is_found(2) && is_found(3) && is_found(4));
        // Fed again by a call that began before it was kept.
        feed(&cache, &prompt(4));
        assert_eq!(cache.stats().bytes, 3 * entry);
    }

    #[test]
    fn short_prompts_and_those_of_a_cache_without_memory_are_not_kept() {
        let scope = PromptScope {
            digest: &DIGEST,
            arithmetic: Arithmetic::FLOAT32,
            owner: &Owner::admin(),
        };
        let cache = PromptCache::new(1_000_000);
        assert!(cache.look_up(&scope, &tokens(MIN_CHARS)).is_none());
        assert!(cache.look_up(&scope, &[]).is_none());
        let none = PromptCache::new(0);
        assert!(none.look_up(&scope, &tokens(1000)).is_none());
        assert_eq!(cache.stats(), PromptCacheStats::default());
    }
}
