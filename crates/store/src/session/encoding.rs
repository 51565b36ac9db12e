//! The binary format of a session record, as backends store it. Numbers are
//! little-endian.
//!
//! ```text
//! magic      "CHSR"
//! format     u16                           now 1
//! precision  u8                            1 float32, 2 int8
//! revision   u16                           revision of the arithmetic
//! owner      text
//! id         text
//! model      text, version u64, digest [u8; 32]
//! created    u64                           milliseconds since 1970
//! last used  u64                           milliseconds of the store's clock
//! begin      state
//! end        state
//! call       parameters u8 (0, 1), [u8; 32] if 1
//!            tokens u8 (0, 1), tokens if 1
//! checksum   u32                           CRC-32C of all of the above
//!
//! text       length u16, UTF-8
//! tokens     width u8 (1, 2, 4), count u32, ids of that width
//! state      position u64, seed u64, draws u64, unfed tokens,
//!            network u8: 0 none, 1 own (length u32, bytes), 2 that of `begin`
//! ```
//!
//! The checksum protects against damage, not against forgery: bytes from
//! outside are sealed or checked as untrusted input.

use bytes::Bytes;

use super::error::RecordError;
use super::identity::{ModelVersion, Precision, SessionIdentity};
use super::name::{Owner, SessionId, SessionKey};
use super::record::{LastCall, ParametersDigest, RandomState, SessionRecord, SessionState};
use super::token_ids::TokenIds;

const MAGIC: &[u8; 4] = b"CHSR";

/// Version of the format that is written, and the only one that is read.
pub const RECORD_FORMAT: u16 = 1;

const CHECKSUM_BYTES: usize = size_of::<u32>();

impl SessionRecord {
    /// Encodes the record.
    ///
    /// # Errors
    /// What [`SessionRecord::check`] finds.
    pub fn encode(&self) -> Result<Bytes, RecordError> {
        self.check()?;
        let network = |state: &SessionState| state.network.as_ref().map_or(0, Bytes::len);
        let mut writer = Writer(Vec::with_capacity(
            512 + network(&self.begin) + network(&self.end),
        ));
        writer.bytes(MAGIC);
        writer.u16(RECORD_FORMAT);
        writer.precision(self.identity.precision);
        writer.u16(self.identity.revision);
        writer.text(self.key.owner.as_str());
        writer.text(self.key.id.as_str());
        writer.model(&self.identity.model, &self.identity.digest)?;
        writer.u64(self.created_unix_ms);
        writer.u64(self.last_used_ms);
        writer.state(&self.begin, None);
        writer.state(&self.end, Some(&self.begin));
        writer.u8(u8::from(self.last_call.parameters.is_some()));
        if let Some(ParametersDigest(digest)) = &self.last_call.parameters {
            writer.bytes(digest);
        }
        writer.u8(u8::from(self.last_call.tokens.is_some()));
        if let Some(tokens) = &self.last_call.tokens {
            writer.tokens(tokens);
        }
        let checksum = crc32c::crc32c(&writer.0);
        writer.bytes(&checksum.to_le_bytes());
        Ok(writer.0.into())
    }

    /// Decodes a record. The states of the result share `bytes`.
    ///
    /// # Errors
    /// Why the bytes are not a record. A record of another format is
    /// [`RecordError::Format`], whatever else it contains.
    pub fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        if reader.take(MAGIC.len()) != Ok(MAGIC) {
            return Err(RecordError::Magic);
        }
        let format = reader.u16().map_err(|_| RecordError::Magic)?;
        if format != RECORD_FORMAT {
            return Err(RecordError::Format(format));
        }
        let content = bytes.len().checked_sub(CHECKSUM_BYTES);
        let content = content.filter(|&end| end >= reader.at);
        let (content, checksum) = content
            .and_then(|end| bytes.split_at_checked(end))
            .ok_or(RecordError::Checksum)?;
        if crc32c::crc32c(content).to_le_bytes() != *checksum {
            return Err(RecordError::Checksum);
        }
        reader.end = content.len();
        let record = reader.record()?;
        reader.finish()?;
        record.check()?;
        Ok(record)
    }
}

fn precision_code(precision: Precision) -> u8 {
    match precision {
        Precision::Float32 => 1,
        Precision::Int8 => 2,
    }
}

fn precision_of(code: u8) -> Result<Precision, RecordError> {
    match code {
        1 => Ok(Precision::Float32),
        2 => Ok(Precision::Int8),
        other => Err(RecordError::Precision(other)),
    }
}

/// Appends fields to a record.
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn count(&mut self, count: usize) {
        let count = u32::try_from(count).expect("lengths are checked before they are written");
        self.bytes(&count.to_le_bytes());
    }

    pub(crate) fn precision(&mut self, precision: Precision) {
        self.u8(precision_code(precision));
    }

    /// A text of at most 64 KiB; longer ones are rejected where they are made.
    pub(crate) fn text(&mut self, text: &str) {
        let length = u16::try_from(text.len()).expect("names are checked to be shorter");
        self.u16(length);
        self.bytes(text.as_bytes());
    }

    pub(crate) fn model(
        &mut self,
        model: &ModelVersion,
        digest: &[u8; 32],
    ) -> Result<(), RecordError> {
        check_model_name(&model.name)?;
        self.text(&model.name);
        self.u64(model.version);
        self.bytes(digest);
        Ok(())
    }

    pub(crate) fn tokens(&mut self, tokens: &TokenIds) {
        let width = tokens.width();
        self.u8(u8::try_from(width).expect("a width is at most 4"));
        self.count(tokens.len());
        for id in tokens.iter() {
            self.bytes(&id.to_le_bytes()[..width]);
        }
    }

    pub(crate) fn state(&mut self, state: &SessionState, begin: Option<&SessionState>) {
        self.u64(state.position);
        self.u64(state.random.seed);
        self.u64(state.random.draws);
        self.tokens(&state.unfed);
        match &state.network {
            None => self.u8(0),
            Some(network) if begin.and_then(|begin| begin.network.as_ref()) == Some(network) => {
                self.u8(2);
            }
            Some(network) => {
                self.u8(1);
                self.count(network.len());
                self.bytes(network);
            }
        }
    }
}

/// Maximum length of a model's name, in bytes. Names are shorter where models
/// are made; this only bounds what is read.
const MAX_MODEL_NAME_BYTES: usize = 256;

fn check_model_name(name: &str) -> Result<(), RecordError> {
    if name.is_empty() || name.len() > MAX_MODEL_NAME_BYTES {
        return Err(RecordError::Content(
            "the model's name is empty or too long",
        ));
    }
    Ok(())
}

/// Reads fields. Every count is compared with the bytes that are there before
/// memory is allocated for it.
pub(crate) struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Self {
        Self {
            bytes,
            at: 0,
            end: bytes.len(),
        }
    }

    /// Ignores the last bytes from `end` on.
    pub(crate) fn end_at(&mut self, end: usize) {
        self.end = end;
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..self.end).unwrap_or_default()
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let taken = self.rest().get(..count);
        let taken = taken.ok_or(RecordError::Content("it ends too early"))?;
        self.at += count;
        Ok(taken)
    }

    /// As `take`, but shares the bytes instead of borrowing them.
    pub(crate) fn slice(&mut self, count: usize) -> Result<Bytes, RecordError> {
        let from = self.at;
        self.take(count)?;
        Ok(self.bytes.slice(from..self.at))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let taken = self.rest().first_chunk::<N>();
        let taken = taken.ok_or(RecordError::Content("it ends too early"))?;
        self.at += N;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn count(&mut self) -> Result<usize, RecordError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// 0 or 1.
    fn flag(&mut self) -> Result<bool, RecordError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RecordError::Content("a flag is neither 0 nor 1")),
        }
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, RecordError> {
        let length = self.u16()?;
        std::str::from_utf8(self.take(length.into())?)
            .map_err(|_| RecordError::Content("a name is not UTF-8"))
    }

    pub(crate) fn owner(&mut self) -> Result<Owner, RecordError> {
        Owner::new(self.text()?).map_err(|_| RecordError::Content("the owner's name is invalid"))
    }

    pub(crate) fn id(&mut self) -> Result<SessionId, RecordError> {
        SessionId::new(self.text()?).map_err(|_| RecordError::Content("the session id is invalid"))
    }

    pub(crate) fn precision(&mut self) -> Result<Precision, RecordError> {
        precision_of(self.u8()?)
    }

    pub(crate) fn model(&mut self) -> Result<(ModelVersion, [u8; 32]), RecordError> {
        let name = self.text()?;
        check_model_name(name)?;
        let version = self.u64()?;
        let model = ModelVersion {
            name: name.into(),
            version,
        };
        Ok((model, self.array()?))
    }

    pub(crate) fn tokens(&mut self) -> Result<TokenIds, RecordError> {
        let width = usize::from(self.u8()?);
        if !matches!(width, 1 | 2 | 4) {
            return Err(RecordError::Content("token ids have an unknown width"));
        }
        let count = self.count()?;
        let bytes = count
            .checked_mul(width)
            .ok_or(RecordError::Content("a count is too large"))?;
        let ids = self.take(bytes)?.chunks_exact(width).map(|id| {
            let mut word = [0; 4];
            word[..width].copy_from_slice(id);
            u32::from_le_bytes(word)
        });
        Ok(ids.collect())
    }

    pub(crate) fn state(
        &mut self,
        begin: Option<&SessionState>,
    ) -> Result<SessionState, RecordError> {
        let position = self.u64()?;
        let random = RandomState {
            seed: self.u64()?,
            draws: self.u64()?,
        };
        let unfed = self.tokens()?;
        let network = match (self.u8()?, begin) {
            (0, _) => None,
            (1, _) => {
                let length = self.count()?;
                Some(self.slice(length)?)
            }
            (2, Some(begin)) => begin.network.clone(),
            _ => return Err(RecordError::Content("a state is of an unknown kind")),
        };
        Ok(SessionState {
            network,
            unfed,
            random,
            position,
        })
    }

    fn record(&mut self) -> Result<SessionRecord, RecordError> {
        let precision = self.precision()?;
        let revision = self.u16()?;
        let key = SessionKey::new(self.owner()?, self.id()?);
        let (model, digest) = self.model()?;
        let created_unix_ms = self.u64()?;
        let last_used_ms = self.u64()?;
        let begin = self.state(None)?;
        let end = self.state(Some(&begin))?;
        let parameters = match self.flag()? {
            true => Some(ParametersDigest(self.array()?)),
            false => None,
        };
        let tokens = match self.flag()? {
            true => Some(self.tokens()?),
            false => None,
        };
        Ok(SessionRecord {
            key,
            identity: SessionIdentity {
                model,
                digest,
                precision,
                revision,
            },
            begin,
            end,
            last_call: LastCall { tokens, parameters },
            created_unix_ms,
            last_used_ms,
        })
    }

    pub(crate) fn finish(&self) -> Result<(), RecordError> {
        if self.at == self.end {
            Ok(())
        } else {
            Err(RecordError::Content("there are bytes after the end"))
        }
    }
}
