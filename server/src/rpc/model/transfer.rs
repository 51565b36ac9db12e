//! Models as streams of chunks, out and in, with a bounded number of chunks in
//! memory at a time.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use charlstm_proto::v1 as pb;
use pb::export_model_response::Payload as Exported;
use pb::import_model_request::Payload as Imported;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Bytes;
use tonic::{Status, Streaming};

use super::{run_blocking, status};
use charlstm_model::model_id::check_name;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{
    ModelDescription, ModelId, Publisher, Repository, RepositoryError, Upload,
};
use charlstm_store::hex;

/// Size of an exported chunk in bytes: far below the 4 MiB that clients accept
/// by default.
const CHUNK_BYTES: usize = 256 * 1024;

/// Number of chunks buffered between the disk and the network.
const CHUNKS_IN_FLIGHT: usize = 4;

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

    /// Starts to send the file, on a thread that may wait for the disk and for
    /// the client. It ends when the client leaves.
    pub(super) fn start(self) -> ReceiverStream<ExportMessage> {
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            if let Err(status) = self.send(&sender) {
                // Fails only if the client has left.
                let _ = sender.blocking_send(Err(status));
            }
        });
        ReceiverStream::new(receiver)
    }

    fn send(mut self, sender: &mpsc::Sender<ExportMessage>) -> Result<(), Status> {
        let id = &self.description.id;
        let message = |payload| pb::ExportModelResponse {
            payload: Some(payload),
        };
        let header = Exported::Header(pb::ExportModelHeader {
            name: id.name.clone(),
            version: id.version,
            bytes: self.description.bytes,
            sha256: hex::encode(&self.description.digest),
        });
        if sender.blocking_send(Ok(message(header))).is_err() {
            return Ok(());
        }
        let mut digest = Sha256::new();
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            (&mut self.file)
                .take(CHUNK_BYTES as u64)
                .read_to_end(&mut chunk)
                .map_err(|error| status::internal(&error))?;
            if chunk.is_empty() {
                break;
            }
            digest.update(&chunk);
            let chunk = Exported::Chunk(Bytes::from(chunk));
            if sender.blocking_send(Ok(message(chunk))).is_err() {
                return Ok(());
            }
        }
        // What was sent cannot be taken back, but the client learns that it is
        // damaged.
        if <[u8; 32]>::from(digest.finalize()) != self.description.digest {
            let reason = "its content differs from what was stored".to_owned();
            self.repository.mark_damaged(id, &reason);
            let error = RepositoryError::Damaged {
                id: id.clone(),
                reason,
            };
            return Err(status::repository("model", &error));
        }
        Ok(())
    }
}

/// Stores the model that a client streams. Nothing is left behind if the client
/// leaves or the file is not a model.
pub(super) async fn import(
    repository: &Repository,
    publisher: Publisher,
    mut stream: Streaming<pb::ImportModelRequest>,
) -> Result<ModelId, Status> {
    let header = match stream.message().await?.and_then(|message| message.payload) {
        Some(Imported::Header(header)) => header,
        _ => return Err(status::invalid("header", "must be in the first message")),
    };
    let header = check_header(header, publisher)?;
    let name = &header.name;
    let checked = repository.check_publisher(name, &header.publisher);
    checked.map_err(|error| status::repository("header.name", &error))?;

    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let repository = repository.clone();
    let storing = tokio::spawn(run_blocking(move || store(&repository, &header, receiver)));
    // If `sender` is dropped before it has sent `End`, the client has left.
    loop {
        let part = match stream.message().await?.map(|message| message.payload) {
            Some(Some(Imported::Chunk(chunk))) => Part::Chunk(chunk),
            Some(_) => {
                let requirement = "must be in each message after the first";
                return Err(status::invalid("chunk", requirement));
            }
            None => Part::End,
        };
        let is_end = matches!(part, Part::End);
        // If the receiver is gone, storing has failed: see below.
        if sender.send(part).await.is_err() || is_end {
            break;
        }
    }
    drop(sender);
    let stored = storing.await.map_err(|error| status::internal(&error))??;
    match stored {
        Ok(Some(id)) => Ok(id),
        // `End` was sent, or `store` has ended with an error.
        Ok(None) => Err(status::internal(&"an import ended without its end")),
        Err(StoreError::Repository(error)) => Err(status::repository("header.name", &error)),
        Err(StoreError::Digest { expected, actual }) => Err(status::invalid(
            "header.sha256",
            format!(
                "the received file has {}, not {}: it was changed on the way or is another file",
                hex::encode(&actual),
                hex::encode(&expected)
            ),
        )),
    }
}

/// Why an upload was not stored.
enum StoreError {
    Repository(RepositoryError),
    Digest {
        expected: [u8; 32],
        actual: [u8; 32],
    },
}

impl From<RepositoryError> for StoreError {
    fn from(error: RepositoryError) -> Self {
        Self::Repository(error)
    }
}

/// A part of an upload, for the thread that stores it.
enum Part {
    Chunk(Bytes),
    End,
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

/// Stores the parts as they arrive, and publishes the model at the end. `None`
/// if the client has left. Blocks.
fn store(
    repository: &Repository,
    header: &ImportHeader,
    mut parts: mpsc::Receiver<Part>,
) -> Result<Option<ModelId>, StoreError> {
    let mut upload: Upload = repository.upload()?;
    let mut digest = Sha256::new();
    loop {
        match parts.blocking_recv() {
            Some(Part::Chunk(chunk)) => {
                digest.update(&chunk);
                upload.append(&chunk)?;
            }
            Some(Part::End) => {
                let actual: [u8; 32] = digest.finalize().into();
                if let Some(expected) = header.sha256.filter(|expected| *expected != actual) {
                    return Err(StoreError::Digest { expected, actual });
                }
                return Ok(publish(repository, header, upload).map(Some)?);
            }
            None => return Ok(None),
        }
    }
}

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
