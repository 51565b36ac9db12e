//! Random calls, against a simple model.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::plenty;
use crate::session::testing::fixture::{Start, key, state};
use crate::session::{ForkRequest, SessionId};

/// Random calls, forks and deletions, against a map of positions.
pub async fn random_calls_leave_what_a_simple_model_predicts(start: Start) {
    let mut random = StdRng::seed_from_u64(11);
    let fixture = start(plenty()).await;
    // Position and beginning of the last call.
    let mut expected: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for step in 0..600_u32 {
        let id = format!("s{}", random.random_range(0..12));
        let chars = random.random_range(1..30);
        match random.random_range(0..10) {
            0 => {
                let deleted = fixture.storage.delete(&key(&id)).await;
                assert_eq!(deleted.is_ok(), expected.remove(&id).is_some());
            }
            1 => {
                let new = format!("s{}", random.random_range(0..12));
                let forked = fixture.storage.fork(ForkRequest {
                    key: key(&id),
                    new_id: SessionId::new(&new).unwrap(),
                    owner_limit: None,
                });
                let forked = forked.await;
                match expected.get(&id) {
                    Some(&at) if !expected.contains_key(&new) => {
                        forked.unwrap();
                        expected.insert(new, at);
                    }
                    _ => assert!(forked.is_err()),
                }
            }
            2 => fixture.abandon(fixture.open(&id).await.unwrap()).await,
            3 if expected.contains_key(&id) => {
                let (_, begin) = expected[&id];
                let opened = fixture.open_at(&id, begin).await.unwrap();
                let outcome = fixture.cut_off(opened, chars, &step.to_string()).await;
                outcome.unwrap();
                expected.insert(id, (begin + chars, begin));
            }
            _ => {
                let opened = fixture.open(&id).await.unwrap();
                let from = expected.get(&id).map_or(0, |&(end, _)| end);
                let at = opened
                    .start
                    .as_ref()
                    .map_or(0, |start| start.state.position);
                assert_eq!(at, from);
                let text = step.to_string();
                fixture.finish(opened, chars, &text).await.unwrap();
                expected.insert(id, (from + chars, from));
            }
        }
    }
    let stats = fixture.stats().await;
    assert_eq!(stats.sessions, expected.len() as u64);
    let mut bytes = 0;
    for (id, (end, begin)) in expected {
        let record = fixture.export(&id).await.unwrap();
        assert_eq!((record.begin, record.end), (state(begin), state(end)));
        bytes += fixture.get(&id).await.unwrap().bytes;
    }
    assert_eq!(stats.bytes, bytes);
    assert_eq!((stats.in_use, stats.pending_creates), (0, 0));
}
