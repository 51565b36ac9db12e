//! Events of a training as event files for TensorBoard. Everything else reads
//! the history.
//!
//! A file is a sequence of records, each a protobuf message `tensorboard.Event`
//! between two checksums. The message is encoded here: it needs three fields of
//! fixed shape, which do not justify a dependency on protobuf.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use charlstm_store::unix_time;

use super::events::EventKind;

/// Name of the folder of the event files in the folder of a training.
const FOLDER: &str = "tensorboard";

/// Returns the paths of the event files of a training; none if it has none.
pub(super) fn event_files(training: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(training.join(FOLDER)) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The event file of one run of a training.
pub(super) struct TensorBoardWriter {
    file: File,
}

impl TensorBoardWriter {
    /// Creates a file for the training of a folder.
    pub(super) fn create(training: &Path) -> io::Result<Self> {
        let folder = training.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let now = now();
        // The number distinguishes runs that begin within one second.
        let name = |number: u32| {
            let seconds = now as u64;
            folder.join(format!(
                "events.out.tfevents.{seconds:010}.charlstm.{number}"
            ))
        };
        let path = (0..).map(name).find(|path| !path.exists());
        let path = path.expect("numbers do not end");
        let mut writer = Self {
            file: OpenOptions::new()
                .append(true)
                .create_new(true)
                .open(path)?,
        };
        let mut event = wall_time(now);
        field_bytes(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        Ok(writer)
    }

    /// Writes the values of an event, if it has any.
    pub(super) fn write(&mut self, event: &EventKind) -> io::Result<()> {
        match event {
            EventKind::Step(step) => self.scalars(
                step.step,
                &[
                    ("loss/step", Some(step.loss)),
                    ("learning_rate", Some(step.learning_rate)),
                    ("gradient_norm", Some(step.gradient_norm)),
                    ("chars_per_second", Some(step.chars_per_second)),
                ],
            ),
            EventKind::Epoch(epoch) => self.scalars(
                epoch.step,
                &[
                    ("loss/epoch", Some(epoch.train_loss)),
                    ("loss/validation", epoch.validation_loss),
                    ("bits_per_char", Some(epoch.bits_per_char)),
                ],
            ),
            EventKind::Accepted(_)
            | EventKind::Checkpoint(_)
            | EventKind::CheckpointFailed(_)
            | EventKind::RolledBack(_)
            | EventKind::Resumed(_)
            | EventKind::Finished(_) => Ok(()),
        }
    }

    fn scalars(&mut self, step: u64, values: &[(&str, Option<f64>)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let Some(value) = value else {
                continue;
            };
            let mut scalar = Vec::new();
            field_bytes(&mut scalar, 1, tag.as_bytes());
            scalar.push(2 << 3 | FOUR_BYTES);
            scalar.extend((*value as f32).to_le_bytes());
            field_bytes(&mut summary, 1, &scalar);
        }
        let mut event = wall_time(now());
        event.push(2 << 3 | VARINT);
        varint(&mut event, step);
        field_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Appends a record in one write, so that a reader finds an incomplete one
    /// only at the end.
    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_checksum(&length));
        record.extend(data);
        record.extend(masked_checksum(data));
        self.file.write_all(&record)
    }
}

/// Seconds since 1970-01-01 UTC.
fn now() -> f64 {
    unix_time::now_ms() as f64 / 1000.0
}

// The wire types of protobuf.
const VARINT: u8 = 0;
const EIGHT_BYTES: u8 = 1;
const BYTES: u8 = 2;
const FOUR_BYTES: u8 = 5;

/// Begins an event: the wall time is its field 1.
fn wall_time(seconds: f64) -> Vec<u8> {
    let mut event = vec![1 << 3 | EIGHT_BYTES];
    event.extend(seconds.to_le_bytes());
    event
}

fn field_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | BYTES);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Appends seven bits per byte, lowest first; the eighth bit says that more
/// follow.
fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Returns the CRC-32C as record files have it: rotated and shifted, so that
/// the checksum of data that contains checksums is still good.
fn masked_checksum(data: &[u8]) -> [u8; 4] {
    let sum = crc32c::crc32c(data).rotate_right(15);
    sum.wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::events::StepProgress;

    /// Returns the records of a file, and checks their checksums.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut records = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            assert_eq!(after[..4], masked_checksum(length));
            let count = u64::from_le_bytes(*length) as usize;
            let (data, after) = after[4..].split_at(count);
            assert_eq!(after[..4], masked_checksum(data));
            records.push(data.to_vec());
            rest = &after[4..];
        }
        assert!(rest.is_empty());
        records
    }

    #[test]
    fn each_run_has_a_file_of_complete_records_with_the_step_and_its_values() {
        let folder = tempfile::tempdir().unwrap();
        let mut writers = [(); 2].map(|()| TensorBoardWriter::create(folder.path()).unwrap());
        writers[1]
            .write(&EventKind::Step(StepProgress {
                epoch: 1,
                step: 300,
                total_steps: 600,
                loss: 2.5,
                gradient_norm: 1.0,
                chars_per_second: 9.0,
                eta_seconds: 1.0,
                learning_rate: 0.001,
            }))
            .unwrap();
        let mut files = event_files(folder.path()).unwrap();
        files.sort();
        assert_eq!(files.len(), 2, "a second run has its own file");
        let all: Vec<Vec<u8>> = files.iter().flat_map(|path| records(path)).collect();
        assert_eq!(all.len(), 3);
        let of_step = all.iter().max_by_key(|record| record.len()).unwrap();
        // Step 300 in two bytes after the wall time, then the summary.
        assert_eq!(of_step[9..13], [0x10, 0xac, 0x02, 0x2a]);
        let tag = b"\x0a\x09loss/step\x15";
        let at = of_step.windows(tag.len()).position(|part| part == tag);
        let value = &of_step[at.unwrap() + tag.len()..][..4];
        assert_eq!(value, 2.5f32.to_le_bytes());
    }

    #[test]
    fn the_checksum_is_that_of_record_files() {
        // The length of the header of every file of this format.
        assert_eq!(
            masked_checksum(&24u64.to_le_bytes()),
            [0xa3, 0x7f, 0x4b, 0x22]
        );
    }
}
