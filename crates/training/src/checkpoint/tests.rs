//! Tests of the checkpoint file.

#![allow(clippy::unwrap_used)]

use super::*;

fn checkpoint(step: u64) -> Checkpoint {
    Checkpoint {
        snapshot: LearnerState {
            step,
            epoch_loss_sum: 0.1 + 0.2,
            parameters: vec![1.0, f32::MIN_POSITIVE / 2.0, -0.0],
            first_moments: vec![2.0; 3],
            second_moments: vec![3.0; 3],
            hidden: vec![4.0; 5],
        },
        position: Position {
            rollbacks: 1,
            epoch_seconds: 1.5,
            train_loss: Some(2.5),
            validation_loss: None,
            best: Some(Best {
                epoch: 1,
                step: 2,
                train_loss: 3.0,
                validation_loss: 4.0,
            }),
        },
        best_parameters: Some(vec![5.0; 3]),
    }
}

#[test]
fn a_checkpoint_is_read_back_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "t", &checkpoint(7)).unwrap();
    assert_eq!(load(folder.path(), "t").unwrap(), checkpoint(7));
    assert!(!folder.path().join(ASIDE).exists());
}

#[test]
fn a_folder_without_a_checkpoint_has_none() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(load(folder.path(), "t"), Err(LoadError::Missing)));
}

#[test]
fn a_checkpoint_cut_or_changed_at_any_byte_gives_way_to_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "t", &checkpoint(1)).unwrap();
    save(folder.path(), "t", &checkpoint(2)).unwrap();
    let path = folder.path().join(CURRENT);
    let sound = fs::read(&path).unwrap();
    for place in 0..sound.len() {
        fs::write(&path, &sound[..place]).unwrap();
        assert_eq!(load(folder.path(), "t").unwrap(), checkpoint(1));
        let mut changed = sound.clone();
        changed[place] ^= 0x10;
        fs::write(&path, &changed).unwrap();
        assert_eq!(load(folder.path(), "t").unwrap(), checkpoint(1));
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(load(folder.path(), "t").unwrap(), checkpoint(1));
}

#[test]
fn two_damaged_checkpoints_are_an_error_that_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "t", &checkpoint(1)).unwrap();
    save(folder.path(), "t", &checkpoint(2)).unwrap();
    fs::write(folder.path().join(CURRENT), b"").unwrap();
    assert_eq!(load(folder.path(), "t").unwrap(), checkpoint(1));
    assert!(load(folder.path(), "other").is_err());
    fs::write(folder.path().join(PREVIOUS), b"CLSTMCP\x01rest").unwrap();
    let error = load(folder.path(), "t").unwrap_err().to_string();
    assert!(error.contains("it is no checkpoint"), "{error}");
    assert!(error.contains("it is cut short"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    assert!(save(&gone, "t", &checkpoint(1)).is_err());
}
