#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn points() -> impl Strategy<Value = SessionState> {
    let hidden = proptest::option::of(proptest::collection::vec(-1.0f32..1.0, 0..40));
    let unfed = proptest::collection::vec(0u32..1000, 0..20);
    (hidden, unfed, any::<(u64, u64, u64)>()).prop_map(
        |(hidden, unfed, (seed, draws, position))| SessionState {
            hidden: hidden.map(|numbers| Arc::new(HiddenState(numbers.into()))),
            unfed: TokenIds::from(unfed.as_slice()),
            random: RandomState { seed, draws },
            position,
        },
    )
}

fn snapshots() -> impl Strategy<Value = Snapshot> {
    let call = proptest::option::of(proptest::collection::vec(0u32..300, 0..50));
    (
        "[a-zA-Z0-9._:-]{1,128}",
        "[a-zé]{1,20}",
        any::<(u64, [u8; 32], bool)>(),
        points(),
        points(),
        call,
    )
        .prop_map(
            |(id, name, (version, digest, share), begin, mut end, call)| {
                if share {
                    end.hidden = begin.hidden.clone();
                }
                Snapshot {
                    id: SessionId::new(&id).unwrap(),
                    model: ModelKey {
                        id: ModelId { name, version },
                        digest,
                    },
                    begin,
                    end,
                    call: call.map(|call| TokenIds::from(call.as_slice())),
                }
            },
        )
}

/// Bytes with a checksum that holds, so that the content is read.
fn sealed(mut content: Vec<u8>) -> Vec<u8> {
    let sum = Sha256::digest(&content);
    content.extend_from_slice(&sum);
    content
}

proptest! {
    #[test]
    fn a_session_is_read_as_it_was_written(snapshot in snapshots()) {
        prop_assert_eq!(Snapshot::from_bytes(&snapshot.to_bytes()), Ok(snapshot));
    }

    #[test]
    fn any_change_of_a_byte_is_noticed(snapshot in snapshots(), place in any::<prop::sample::Index>(), change in 1u8..) {
        let mut bytes = snapshot.to_bytes();
        let place = place.index(bytes.len());
        bytes[place] ^= change;
        prop_assert!(Snapshot::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_session_cut_off_anywhere_is_refused(snapshot in snapshots(), place in any::<prop::sample::Index>()) {
        let bytes = snapshot.to_bytes();
        prop_assert!(Snapshot::from_bytes(&bytes[..place.index(bytes.len())]).is_err());
    }

    #[test]
    fn hostile_bytes_are_an_error_and_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Snapshot::from_bytes(&bytes).is_err());
        let mut content = b"CHLS\x01\x00".to_vec();
        content.extend_from_slice(&bytes);
        // With a checksum that holds only a miracle makes a session of them;
        // what counts is that nothing panics or asks for much memory.
        let _ = Snapshot::from_bytes(&sealed(content));
    }

    #[test]
    fn a_changed_content_under_a_true_checksum_never_panics(snapshot in snapshots(), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut content = snapshot.to_bytes();
        content.truncate(content.len() - SUM_BYTES);
        let place = place.index(content.len());
        content[place] = byte;
        let _ = Snapshot::from_bytes(&sealed(content));
    }
}

#[test]
fn a_count_far_beyond_the_bytes_takes_no_memory() {
    let mut content = b"CHLS\x01\x00\x01\x00a\x01\x00m".to_vec();
    content.extend_from_slice(&[0; 8 + 32 + 24]);
    content.extend_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        Snapshot::from_bytes(&sealed(content)),
        Err(SnapshotError::Content("it ends too early"))
    );
}

#[test]
fn a_later_format_is_named() {
    let error = Snapshot::from_bytes(b"CHLS\x07\x00").unwrap_err();
    assert_eq!(error, SnapshotError::Version(7));
}
