//! Tests of the checkpoint files.

#![allow(clippy::unwrap_used)]

use super::*;

fn checkpoint(step: u64) -> Checkpoint {
    Checkpoint {
        learner: LearnerState {
            step,
            epoch_loss_sum: 0.1 + 0.2,
            parameters: vec![1.0, f32::MIN_POSITIVE / 2.0, -0.0],
            first_moments: vec![2.0; 3],
            second_moments: vec![3.0; 3],
            hidden: vec![4.0; 5],
            average: vec![6.0; 3],
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
            instructions: "avx512".to_owned(),
            loss_trend: LossTrend::default(),
        },
        best_parameters: Some(Arc::new(vec![5.0; 3])),
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    checkpoints: Checkpoints,
}

impl Fixture {
    /// Has the checkpoints of those steps, the last as the current one.
    fn new(steps: &[u64]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), "t");
        for &step in steps {
            checkpoints.save(&checkpoint(step)).unwrap();
        }
        Self {
            folder,
            checkpoints,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> u64 {
        let verified = self.checkpoints.verify().unwrap().step;
        let step = self.checkpoints.load().unwrap().learner.step;
        assert_eq!(verified, step, "verify finds what load finds");
        step
    }

    fn damage(&self, name: &str) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(self.path(name), bytes).unwrap();
    }
}

#[test]
fn a_checkpoint_is_read_back_to_the_last_bit() {
    let fixture = Fixture::new(&[7]);
    assert_eq!(fixture.checkpoints.load().unwrap(), checkpoint(7));
    assert!(!fixture.path(NEW).exists());
    let without_best = Checkpoint {
        best_parameters: None,
        ..checkpoint(8)
    };
    fixture.checkpoints.save(&without_best).unwrap();
    assert_eq!(fixture.checkpoints.load().unwrap(), without_best);
    assert_eq!(fixture.checkpoints.load_previous().unwrap(), checkpoint(7));
}

#[test]
fn a_folder_without_a_checkpoint_has_none() {
    let fixture = Fixture::new(&[]);
    assert!(matches!(
        fixture.checkpoints.load(),
        Err(LoadError::Missing)
    ));
    assert!(matches!(
        fixture.checkpoints.verify(),
        Err(LoadError::Missing)
    ));
    assert!(!fixture.checkpoints.exist());
}

#[test]
fn if_a_checkpoint_is_cut_or_changed_at_any_byte_the_one_before_is_used() {
    let fixture = Fixture::new(&[1, 2]);
    let path = fixture.path(CURRENT);
    let sound = fs::read(&path).unwrap();
    for place in 0..sound.len() {
        fs::write(&path, &sound[..place]).unwrap();
        assert_eq!(fixture.load(), 1);
        let mut changed = sound.clone();
        changed[place] ^= 0x10;
        fs::write(&path, &changed).unwrap();
        assert_eq!(fixture.load(), 1);
    }
    fs::write(&path, [&sound[..], b"x"].concat()).unwrap();
    assert_eq!(fixture.load(), 1);
    assert!(!path.exists() && fixture.path(DAMAGED).exists());
    assert_eq!(fixture.load(), 1);
}

#[test]
fn a_damaged_checkpoint_never_replaces_a_sound_one() {
    let fixture = Fixture::new(&[1, 2]);
    fixture.damage(CURRENT);
    assert_eq!(fixture.load(), 1);
    fixture.checkpoints.save(&checkpoint(3)).unwrap();
    assert_eq!(fixture.load(), 3);
    assert_eq!(fixture.checkpoints.load_previous().unwrap(), checkpoint(1));
    // At each moment of that save, one of the sound ones was there.
    fixture.damage(CURRENT);
    assert_eq!(fixture.load(), 1);
}

#[test]
fn two_damaged_checkpoints_are_an_error_that_says_what_is_wrong() {
    let fixture = Fixture::new(&[1, 2]);
    fs::write(fixture.path(CURRENT), b"").unwrap();
    let other = Checkpoints::new(fixture.folder.path(), "other");
    assert!(matches!(other.load(), Err(LoadError::Damaged { .. })));
    fs::write(
        fixture.path(PREVIOUS),
        b"not a checkpoint, though it is long enough",
    )
    .unwrap();
    for error in [
        fixture.checkpoints.verify().unwrap_err(),
        fixture.checkpoints.load().unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("it is not a checkpoint"), "{error}");
        assert!(error.contains("it is cut short"), "{error}");
    }
    assert!(fixture.path(CURRENT).exists(), "nothing was moved");
}

#[test]
fn a_crash_at_any_moment_of_a_save_leaves_the_newest_complete_checkpoint() {
    // Between the files and the names that a save writes, in order.
    let complete = {
        let fixture = Fixture::new(&[3]);
        fs::read(fixture.path(CURRENT)).unwrap()
    };
    for length in [0, 1, complete.len() / 2, complete.len() - 1, complete.len()] {
        for renamed in [false, true] {
            let is_complete = length == complete.len();
            if renamed && !is_complete {
                continue;
            }
            let fixture = Fixture::new(&[1, 2]);
            fs::write(fixture.path(NEW), &complete[..length]).unwrap();
            if renamed {
                fs::rename(fixture.path(CURRENT), fixture.path(PREVIOUS)).unwrap();
            }
            let (newest, previous) = if is_complete { (3, 2) } else { (2, 1) };
            assert_eq!(fixture.load(), newest);
            assert!(!fixture.path(NEW).exists());
            let before = fixture.checkpoints.load_previous().unwrap();
            assert_eq!(before.learner.step, previous);
        }
    }
}

#[test]
fn a_new_checkpoint_next_to_a_damaged_one_keeps_the_sound_one_before() {
    let fixture = Fixture::new(&[1, 2]);
    fixture.damage(CURRENT);
    let complete = {
        let fixture = Fixture::new(&[3]);
        fs::read(fixture.path(CURRENT)).unwrap()
    };
    fs::write(fixture.path(NEW), complete).unwrap();
    assert_eq!(fixture.load(), 3);
    assert_eq!(fixture.checkpoints.load_previous().unwrap(), checkpoint(1));
}

#[test]
fn replacing_the_newest_checkpoint_keeps_the_one_before() {
    let fixture = Fixture::new(&[1, 2]);
    let mut rolled_back = checkpoint(2);
    rolled_back.position.rollbacks = 2;
    fixture.checkpoints.replace(&rolled_back).unwrap();
    assert_eq!(fixture.checkpoints.load().unwrap(), rolled_back);
    assert_eq!(fixture.checkpoints.load_previous().unwrap(), checkpoint(1));
    // A crash before its rename.
    rolled_back.position.rollbacks = 3;
    fixture.checkpoints.write_new(&rolled_back).unwrap();
    assert_eq!(fixture.checkpoints.load().unwrap(), rolled_back);
    assert_eq!(fixture.checkpoints.load_previous().unwrap(), checkpoint(1));
}

#[test]
fn a_save_that_fails_leaves_the_earlier_checkpoints() {
    let fixture = Fixture::new(&[1, 2]);
    fs::create_dir(fixture.path(NEW)).unwrap();
    assert!(fixture.checkpoints.save(&checkpoint(3)).is_err());
    fs::remove_dir(fixture.path(NEW)).unwrap();
    assert_eq!(fixture.load(), 2);
    assert_eq!(fixture.checkpoints.load_previous().unwrap(), checkpoint(1));
    let gone = Checkpoints::new(&fixture.path("gone"), "t");
    assert!(gone.save(&checkpoint(1)).is_err());
}
