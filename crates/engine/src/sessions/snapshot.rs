//! A session as bytes: what `ExportSession` returns and what is saved on a
//! clean stop. Numbers are little-endian.
//!
//! ```text
//! "CHLS"  version u16                          magic and format, now 1
//! id      text                                 name of the session
//! model   text, version u64, digest [u8; 32]   what it belongs to
//! begin   point                                where its last call began
//! end     point                                where it stands
//! call    u8 (0, 1), tokens if 1               the characters in between
//! sum     [u8; 32]                             SHA-256 of all the above
//!
//! text    length u16, UTF-8
//! tokens  count u32, u32 each
//! point   position u64, seed u64, draws u64, tokens, state
//! state   u8: 0 none, 1 own (count u32, f32 each), 2 that of `begin`
//! ```

use std::sync::Arc;

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::id::SessionId;
use super::state::{ModelKey, SessionState, TokenIds};
use charlstm_model::decode_step::HiddenState;
use charlstm_model::sampler::RandomState;
use charlstm_repository::ModelId;

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 4] = b"CHLS";
const VERSION: u16 = 1;
const SUM_BYTES: usize = 32;

/// A session with all that is needed to go on, or to repeat its last call.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Its name.
    pub id: SessionId,
    /// The model it belongs to.
    pub model: ModelKey,
    /// Where its last call began.
    pub begin: SessionState,
    /// Where it stands.
    pub end: SessionState,
    /// The characters of the last call, where they are kept.
    pub call: Option<TokenIds>,
}

/// Bytes that are not a session.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// They do not begin as a session does.
    #[error("these bytes are not an exported session")]
    Magic,
    /// They are of a later format.
    #[error("format {0} is not known; this server reads format {VERSION}")]
    Version(u16),
    /// They were changed or cut off.
    #[error("the checksum does not match: the bytes were changed or cut off")]
    Checksum,
    /// The checksum holds, and the content makes no sense.
    #[error("{0}")]
    Content(&'static str),
}

impl Snapshot {
    /// Writes the session.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        write_text(&mut bytes, self.id.as_str());
        write_text(&mut bytes, &self.model.id.name);
        bytes.extend_from_slice(&self.model.id.version.to_le_bytes());
        bytes.extend_from_slice(&self.model.digest);
        write_point(&mut bytes, &self.begin, None);
        write_point(&mut bytes, &self.end, Some(&self.begin));
        bytes.push(u8::from(self.call.is_some()));
        if let Some(call) = &self.call {
            write_tokens(&mut bytes, call);
        }
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Reads a session. Takes no more memory than a few times the bytes,
    /// whatever they say.
    ///
    /// # Errors
    /// Why they are not a session.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut reader = Reader { rest: bytes };
        if reader.take(MAGIC.len()) != Ok(MAGIC) {
            return Err(SnapshotError::Magic);
        }
        let version = u16::from_le_bytes(reader.array().map_err(|_| SnapshotError::Magic)?);
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let (content, sum) = bytes
            .split_last_chunk::<SUM_BYTES>()
            .ok_or(SnapshotError::Checksum)?;
        if Sha256::digest(content).as_slice() != sum {
            return Err(SnapshotError::Checksum);
        }
        reader.rest = content
            .get(MAGIC.len() + size_of::<u16>()..)
            .ok_or(SnapshotError::Checksum)?;
        let snapshot = reader.snapshot()?;
        if !reader.rest.is_empty() {
            return Err(SnapshotError::Content("there is more than a session"));
        }
        Ok(snapshot)
    }
}

fn write_text(bytes: &mut Vec<u8>, text: &str) {
    // Names are checked to be far shorter where they are made.
    let length = u16::try_from(text.len()).expect("a name is shorter than 64 KiB");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

fn write_tokens(bytes: &mut Vec<u8>, tokens: &TokenIds) {
    let count = u32::try_from(tokens.len()).expect("a call has fewer than 2^32 characters");
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend(tokens.iter().flat_map(u32::to_le_bytes));
}

fn write_point(bytes: &mut Vec<u8>, point: &SessionState, begin: Option<&SessionState>) {
    bytes.extend_from_slice(&point.position.to_le_bytes());
    bytes.extend_from_slice(&point.random.seed.to_le_bytes());
    bytes.extend_from_slice(&point.random.draws.to_le_bytes());
    write_tokens(bytes, &point.unfed);
    match &point.hidden {
        None => bytes.push(0),
        Some(_) if begin.is_some_and(|begin| begin.shares_hidden(point)) => bytes.push(2),
        Some(hidden) => {
            bytes.push(1);
            let count = u32::try_from(hidden.0.len()).expect("a state has fewer than 2^32 numbers");
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend(hidden.0.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
}

/// What is left to read. Every count is held against the bytes that are
/// there before memory is taken for it.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SnapshotError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(SnapshotError::Content("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(SnapshotError::Content("it ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self) -> Result<usize, SnapshotError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn words(&mut self) -> Result<impl Iterator<Item = [u8; 4]> + 'a, SnapshotError> {
        let count = self.count()?;
        let bytes = count
            .checked_mul(4)
            .ok_or(SnapshotError::Content("a count is too large"))?;
        let (words, _) = self.take(bytes)?.as_chunks::<4>();
        Ok(words.iter().copied())
    }

    fn text(&mut self) -> Result<&'a str, SnapshotError> {
        let length = u16::from_le_bytes(self.array()?);
        std::str::from_utf8(self.take(length.into())?)
            .map_err(|_| SnapshotError::Content("a name is not UTF-8"))
    }

    fn tokens(&mut self) -> Result<TokenIds, SnapshotError> {
        let tokens: Vec<u32> = self.words()?.map(u32::from_le_bytes).collect();
        Ok(TokenIds::from(tokens.as_slice()))
    }

    fn point(&mut self, begin: Option<&SessionState>) -> Result<SessionState, SnapshotError> {
        let position = self.number()?;
        let random = RandomState {
            seed: self.number()?,
            draws: self.number()?,
        };
        let unfed = self.tokens()?;
        let hidden = match (self.array()?, begin) {
            ([0], _) => None,
            ([1], _) => {
                let numbers: Box<[f32]> = self.words()?.map(f32::from_le_bytes).collect();
                Some(Arc::new(HiddenState(numbers)))
            }
            ([2], Some(begin)) => begin.hidden.clone(),
            _ => return Err(SnapshotError::Content("a state is of an unknown kind")),
        };
        Ok(SessionState {
            hidden,
            unfed,
            random,
            position,
        })
    }

    fn snapshot(&mut self) -> Result<Snapshot, SnapshotError> {
        let id = SessionId::new(self.text()?)
            .map_err(|_| SnapshotError::Content("its name is no session name"))?;
        let name = self.text()?.to_owned();
        let id_of_model = ModelId {
            name,
            version: self.number()?,
        };
        let model = ModelKey {
            id: id_of_model,
            digest: self.array()?,
        };
        let begin = self.point(None)?;
        let end = self.point(Some(&begin))?;
        let call = match self.array()? {
            [0] => None,
            [1] => Some(self.tokens()?),
            _ => {
                return Err(SnapshotError::Content(
                    "its last call is of an unknown kind",
                ));
            }
        };
        Ok(Snapshot {
            id,
            model,
            begin,
            end,
            call,
        })
    }
}
