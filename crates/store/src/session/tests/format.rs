//! The binary format of records.

use bytes::Bytes;
use proptest::prelude::*;

use crate::session::testing::fixture::{identity, key, parameters, state};
use crate::session::{
    LastCall, MAX_POSITION, MAX_REPLAY_CHARS, MAX_STATE_BYTES, Owner, Precision, RECORD_FORMAT,
    RandomState, RecordError, SessionId, SessionIdentity, SessionKey, SessionRecord, SessionState,
    TokenIds,
};

fn small_record() -> SessionRecord {
    let network = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
    let random = |draws| RandomState { seed: 42, draws };
    SessionRecord {
        key: SessionKey::new(
            Owner::new("alice").unwrap(),
            SessionId::new("tale-1").unwrap(),
        ),
        identity: SessionIdentity {
            precision: Precision::Int8,
            ..identity("book", 3)
        },
        begin: SessionState {
            network: network(&[1, 2, 3, 4]),
            unfed: [5].as_slice().into(),
            random: random(10),
            position: 100,
        },
        end: SessionState {
            network: network(&[9, 8, 7, 6]),
            unfed: [300].as_slice().into(),
            random: random(13),
            position: 103,
        },
        last_call: LastCall {
            tokens: Some([1, 2, 300].as_slice().into()),
            parameters: Some(parameters("p")),
        },
        created_unix_ms: 1_700_000_000_000,
        last_used_ms: 12_345,
    }
}

// The file was written by hand after the description of the format. It must
// never change: stores contain such records.
#[test]
fn format_1_is_written_and_read_as_it_always_was() {
    let record = small_record();
    let bytes = record.encode().unwrap();
    let golden = include_bytes!("../../../tests/data/session-record-1.bin");
    assert_eq!(&bytes[..], golden);
    let read = SessionRecord::decode(&Bytes::from_static(golden)).unwrap();
    assert_eq!(read, record);
    assert_eq!(read.end.network.unwrap(), [9, 8, 7, 6].as_slice());
}

#[test]
fn equal_states_are_written_once() {
    let mut record = small_record();
    let whole = record.encode().unwrap().len();
    record.end.network = record.begin.network.clone();
    let bytes = record.encode().unwrap();
    assert_eq!(bytes.len(), whole - 8);
    assert_eq!(SessionRecord::decode(&bytes).unwrap(), record);
}

#[test]
fn another_format_is_named_in_the_error_and_not_guessed() {
    let mut bytes = small_record().encode().unwrap().to_vec();
    bytes[4] = 2;
    let error = SessionRecord::decode(&bytes.into()).unwrap_err();
    assert_eq!(error, RecordError::Format(2));
    assert!(
        error
            .to_string()
            .contains(&format!("format {RECORD_FORMAT}"))
    );
    let other = Bytes::from_static(b"SQLite format 3");
    assert_eq!(SessionRecord::decode(&other), Err(RecordError::Magic));
}

#[test]
fn every_changed_bit_and_every_cut_is_noticed() {
    let bytes = small_record().encode().unwrap();
    for at in 0..bytes.len() {
        assert!(SessionRecord::decode(&bytes.slice(..at)).is_err());
        for bit in 0..8 {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1 << bit;
            assert!(SessionRecord::decode(&changed.into()).is_err(), "{at}");
        }
    }
    let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    assert!(SessionRecord::decode(&longer.into()).is_err());
}

#[test]
fn records_that_make_no_sense_are_not_written() {
    let wrong = |change: fn(&mut SessionRecord)| {
        let mut record = small_record();
        change(&mut record);
        record.encode().unwrap_err()
    };
    let content = |error| matches!(error, RecordError::Content(_));
    assert!(content(wrong(|r| r.end.position = 104)));
    assert!(content(wrong(|r| r.end.position = 99)));
    assert!(content(wrong(|r| r.end.position = MAX_POSITION + 1)));
    assert!(content(wrong(|r| r.end.unfed = TokenIds::default())));
    assert!(content(wrong(|r| r.identity.model.name = "".into())));
    let large = |error| matches!(error, RecordError::TooLarge { .. });
    assert!(large(wrong(|r| {
        r.end.network = Some(vec![0; MAX_STATE_BYTES + 1].into());
    })));
    assert!(large(wrong(|r| {
        r.last_call.tokens = Some((0..=MAX_REPLAY_CHARS as u32).map(|_| 1).collect());
        r.end.position = 101 + MAX_REPLAY_CHARS as u64;
    })));
}

#[test]
fn a_first_call_has_no_state_at_its_beginning() {
    let record = SessionRecord {
        key: key("a"),
        begin: state(0),
        end: state(3),
        last_call: LastCall::default(),
        ..small_record()
    };
    let bytes = record.encode().unwrap();
    assert_eq!(SessionRecord::decode(&bytes).unwrap(), record);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_rejected_without_a_panic(bytes: Vec<u8>) {
        let mut forged = b"CHSR\x01\x00".to_vec();
        forged.extend(&bytes);
        let sum = crc32c::crc32c(&forged).to_le_bytes();
        forged.extend(sum);
        prop_assert!(SessionRecord::decode(&forged.into()).is_err());
        prop_assert!(SessionRecord::decode(&bytes.into()).is_err());
    }

    #[test]
    fn token_ids_of_every_width_are_read_back(ids: Vec<u32>, mask in 0_u32..32) {
        let ids: Vec<u32> = ids.iter().map(|id| id >> mask).collect();
        let tokens = TokenIds::from(ids.as_slice());
        prop_assert_eq!(tokens.len(), ids.len());
        prop_assert!(tokens.iter().eq(ids.iter().copied()));
        let state = SessionState {
            unfed: tokens.clone(),
            position: ids.len() as u64,
            ..SessionState::origin(1)
        };
        let record = SessionRecord {
            begin: SessionState::origin(1),
            end: state,
            last_call: LastCall::default(),
            ..small_record()
        };
        let read = SessionRecord::decode(&record.encode().unwrap()).unwrap();
        prop_assert_eq!(read.end.unfed, tokens);
    }
}
