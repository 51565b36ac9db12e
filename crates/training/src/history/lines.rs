//! The lines of a history's file: one event each, as JSON with a checksum.

use std::io;

use charlstm_store::checksummed_json;

use crate::events::Event;

/// The lines of a file.
#[derive(Default)]
pub(super) struct Lines<'a> {
    pub(super) events: Vec<SoundLine<'a>>,
    pub(super) damaged: Vec<DamagedLine<'a>>,
    /// Bytes up to the end of the last line that ends in a line break.
    pub(super) whole_bytes: u64,
    /// True if the last line is complete but for its line break.
    pub(super) unended: bool,
}

pub(super) struct SoundLine<'a> {
    pub(super) event: Event,
    pub(super) number: usize,
    pub(super) bytes: &'a [u8],
}

pub(super) struct DamagedLine<'a> {
    /// From 1.
    pub(super) number: usize,
    /// Without the line break.
    pub(super) bytes: &'a [u8],
    pub(super) error: String,
}

impl<'a> Lines<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Self {
        let mut lines = Self::default();
        for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let is_whole = line.ends_with(b"\n");
            let content = line.strip_suffix(b"\n").unwrap_or(line);
            match checksummed_json::from_slice::<Event>(content) {
                Ok(event) => {
                    lines.add(SoundLine {
                        event,
                        number: index + 1,
                        bytes: content,
                    });
                    lines.unended = !is_whole;
                }
                // Cut off by a crash while it was written: no watcher saw it.
                Err(_) if !is_whole => break,
                Err(error) => lines.damaged.push(DamagedLine {
                    number: index + 1,
                    bytes: content,
                    error: error.to_string(),
                }),
            }
            if is_whole {
                lines.whole_bytes += line.len() as u64;
            }
        }
        lines
    }

    /// Adds an event. If its sequence number does not ascend, either it or the
    /// event before it is damaged: version 0.1 wrote no checksums.
    fn add(&mut self, line: SoundLine<'a>) {
        let sequence = line.event.sequence;
        let last = self.events.last().map(|line| line.event.sequence);
        if last.is_none_or(|last| last < sequence) {
            self.events.push(line);
            return;
        }
        let before_last = self.events.iter().nth_back(1);
        let fits_before_last = before_last.is_none_or(|line| line.event.sequence < sequence);
        let damaged = if last.is_some_and(|last| last > sequence) && fits_before_last {
            let last = self.events.pop();
            self.events.push(line);
            last
        } else {
            Some(line)
        };
        self.damaged.extend(damaged.map(|line| DamagedLine {
            number: line.number,
            bytes: line.bytes,
            error: "its sequence number does not ascend".to_owned(),
        }));
    }
}

pub(super) fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = checksummed_json::to_line(event)?;
    line.push(b'\n');
    Ok(line)
}
