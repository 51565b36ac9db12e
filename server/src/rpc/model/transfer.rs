//! Models as streams of chunks, out and in, with one chunk in memory at a time.

use std::fs::File;
use std::future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;

use charlstm_proto::v1 as pb;
use futures_util::stream::unfold;
use futures_util::{FutureExt, Stream, StreamExt};
use pb::export_model_response::Payload as Exported;
use pb::import_model_request::Payload as Imported;
use sha2::{Digest, Sha256};
use tonic::codegen::Bytes;
use tonic::{Status, Streaming};

use super::{run_blocking, status};
use crate::rpc::transfers::Transfer;
use charlstm_model::model_id::check_name;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{
    ModelDescription, ModelId, Publisher, Repository, RepositoryError, Upload,
};
use charlstm_store::hex;

/// Size of an exported chunk in bytes: far below the 4 MiB that clients accept
/// by default.
const CHUNK_BYTES: usize = 256 * 1024;

/// The messages of an export.
pub(super) type ExportStream = Pin<Box<dyn Stream<Item = ExportMessage> + Send>>;

type ExportMessage = Result<pb::ExportModelResponse, Status>;

/// The export of one file.
pub(super) struct Export {
    repository: Repository,
    file: File,
    description: Arc<ModelDescription>,
}

impl Export {
    pub(super) fn open(repository: Repository, reference: &str) -> Result<Self, RepositoryError> {
        let id = repository.resolve(reference)?;
        let (file, description) = repository.open_file(&id)?;
        Ok(Self {
            repository,
            file,
            description,
        })
    }

    /// Returns the messages. Each chunk is read when the client has room for
    /// it; no thread waits for the client.
    pub(super) fn start(self, transfer: Transfer) -> ExportStream {
        let header = pb::ExportModelHeader {
            name: self.description.id.name.clone(),
            version: self.description.id.version,
            bytes: self.description.bytes,
            sha256: hex::encode(&self.description.digest),
        };
        let header = future::ready(Ok(message(Exported::Header(header))));
        let content = ExportedFile {
            export: self,
            digest: Sha256::new(),
        };
        let chunks = unfold(Some((content, transfer)), |state| async {
            let (content, transfer) = state?;
            if transfer.is_evicted() {
                return Some((Err(status::transfer_evicted()), None));
            }
            transfer.set_idle(false);
            let (chunk, content) = match run_blocking(move || content.next()).await {
                Ok(Ok(Some(next))) => next,
                Ok(Ok(None)) => return None,
                Ok(Err(status)) | Err(status) => return Some((Err(status), None)),
            };
            // Until the next chunk is asked for.
            transfer.set_idle(true);
            Some((
                Ok(message(Exported::Chunk(chunk))),
                Some((content, transfer)),
            ))
        });
        Box::pin(header.into_stream().chain(chunks))
    }
}

fn message(payload: Exported) -> pb::ExportModelResponse {
    pb::ExportModelResponse {
        payload: Some(payload),
    }
}

/// What is left of the file of an export.
struct ExportedFile {
    export: Export,
    digest: Sha256,
}

impl ExportedFile {
    /// Reads the next chunk; `None` at the end. Blocks on the disk.
    fn next(mut self) -> Result<Option<(Bytes, Self)>, Status> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut self.export.file)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .map_err(|error| status::internal(&error))?;
        if !chunk.is_empty() {
            self.digest.update(&chunk);
            return Ok(Some((chunk.into(), self)));
        }
        // What was sent cannot be taken back, but the client learns that it is
        // damaged.
        let Export {
            repository,
            description,
            ..
        } = self.export;
        if <[u8; 32]>::from(self.digest.finalize()) != description.digest {
            let reason = "its content differs from what was stored".to_owned();
            let id = description.id.clone();
            repository.mark_damaged(&id, &reason);
            let error = RepositoryError::Damaged { id, reason };
            return Err(status::repository("model", &error));
        }
        Ok(None)
    }
}

/// Stores the model that a client streams. Nothing is left behind if the client
/// leaves or the file is not a model.
pub(super) async fn import(
    repository: &Repository,
    publisher: Publisher,
    mut stream: Streaming<pb::ImportModelRequest>,
    transfer: Transfer,
) -> Result<ModelId, Status> {
    let first = transfer.wait(stream.message()).await?;
    let header = match first.and_then(|message| message.payload) {
        Some(Imported::Header(header)) => header,
        _ => return Err(status::invalid("header", "must be in the first message")),
    };
    let header = check_header(header, publisher)?;
    let failed = |error| status::repository("header.name", &error);
    let checked = repository.check_publisher(&header.name, &header.publisher);
    checked.map_err(failed)?;

    let repository = repository.clone();
    let storage = repository.clone();
    let mut upload = run_blocking(move || storage.upload())
        .await?
        .map_err(failed)?;
    let mut digest = Sha256::new();
    // The next message is read after this one is stored: a client that is
    // faster than the disk has to wait.
    while let Some(message) = transfer.wait(stream.message()).await? {
        let Some(Imported::Chunk(chunk)) = message.payload else {
            let requirement = "must be in each message after the first";
            return Err(status::invalid("chunk", requirement));
        };
        transfer.received(chunk.len())?;
        digest.update(&chunk);
        let appended = run_blocking(move || upload.append(&chunk).map(|()| upload)).await?;
        upload = appended.map_err(failed)?;
    }
    let actual: [u8; 32] = digest.finalize().into();
    if let Some(expected) = header.sha256.filter(|expected| *expected != actual) {
        let problem = format!(
            "the received file has {}, not {}: it was changed on the way or is another file",
            hex::encode(&actual),
            hex::encode(&expected)
        );
        return Err(status::invalid("header.sha256", problem));
    }
    let published = run_blocking(move || publish(&repository, &header, upload)).await?;
    published.map_err(failed)
}

/// A checked header of an upload.
struct ImportHeader {
    publisher: Publisher,
    name: String,
    format: pb::ModelFormat,
    vocabulary: Option<Vocabulary>,
    /// SHA-256 that the file must have.
    sha256: Option<[u8; 32]>,
}

fn check_header(
    header: pb::ImportModelHeader,
    publisher: Publisher,
) -> Result<ImportHeader, Status> {
    check_name(&header.name).map_err(|error| status::repository("header.name", &error.into()))?;
    let format = pb::ModelFormat::try_from(header.format)
        .map_err(|_| status::invalid("header.format", "is not a known format"))?;
    let given = !header.vocabulary.is_empty();
    let sha256 =
        match header.sha256.as_str() {
            "" => None,
            text => Some(hex::decode(&text.to_lowercase()).ok_or_else(|| {
                status::invalid("header.sha256", "must have 64 hexadecimal digits")
            })?),
        };
    Ok(ImportHeader {
        publisher,
        name: header.name,
        format,
        sha256,
        vocabulary: given.then(|| Vocabulary::from_chars(header.vocabulary.chars().collect())),
    })
}

/// Publishes a complete upload. Blocks.
fn publish(
    repository: &Repository,
    header: &ImportHeader,
    upload: Upload,
) -> Result<ModelId, RepositoryError> {
    let is_torch_checkpoint = match header.format {
        pb::ModelFormat::Pth => true,
        pb::ModelFormat::Safetensors => false,
        pb::ModelFormat::Unspecified => upload.is_torch_checkpoint(),
    };
    let vocabulary = header.vocabulary.as_ref();
    if is_torch_checkpoint {
        repository.import_torch_checkpoint(&header.publisher, &header.name, upload, vocabulary)
    } else {
        repository.import(&header.publisher, &header.name, upload, vocabulary)
    }
}
