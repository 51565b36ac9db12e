//! Export and import of models as streams of bytes, with a bounded number of
//! chunks in memory.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use charlstm_proto::v1 as proto;
use proto::export_model_response::Payload as Exported;
use proto::import_model_request::Payload as Imported;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Bytes;
use tonic::{Status, Streaming};

use super::{run_blocking, status};
use charlstm_model::model_id::check_name;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{ModelDescription, ModelId, Repository, RepositoryError, Upload};

/// Bytes of an exported chunk: far below the 4 MiB that clients accept by
/// default.
const CHUNK_BYTES: usize = 256 * 1024;

/// Maximum number of chunks buffered between the disk and the network.
const CHUNKS_IN_FLIGHT: usize = 4;

type ExportMessage = Result<proto::ExportModelResponse, Status>;

/// A model file that is being sent to a client.
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

    /// Sends the file from a thread that may block on the disk and on the
    /// client. Ends when the client disconnects.
    pub(super) fn start(self) -> ReceiverStream<ExportMessage> {
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            if let Err(status) = self.send(&sender) {
                // If the client has disconnected, nobody needs the error.
                let _ = sender.blocking_send(Err(status));
            }
        });
        ReceiverStream::new(receiver)
    }

    fn send(mut self, sender: &mpsc::Sender<ExportMessage>) -> Result<(), Status> {
        let id = &self.description.id;
        let message = |payload| proto::ExportModelResponse {
            payload: Some(payload),
        };
        let header = Exported::Header(proto::ExportModelHeader {
            name: id.name.clone(),
            version: id.version,
            bytes: self.description.bytes,
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
        // The chunks are sent already; the final status says that they are wrong.
        if <[u8; 32]>::from(digest.finalize()) != self.description.digest {
            let reason = "its bytes are not those that were stored".to_owned();
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

/// Stores a model that a client streams. Nothing is left of it if the client
/// disconnects or the file is not a model.
pub(super) async fn import(
    repository: &Repository,
    mut stream: Streaming<proto::ImportModelRequest>,
) -> Result<ModelId, Status> {
    let header = match stream.message().await?.and_then(|message| message.payload) {
        Some(Imported::Header(header)) => header,
        _ => return Err(status::invalid("header", "must be in the first message")),
    };
    let header = check_header(header)?;

    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let repository = repository.clone();
    let storing = tokio::spawn(run_blocking(move || store(&repository, &header, receiver)));
    // If `sender` is dropped before `End`, the client has disconnected.
    loop {
        let part = match stream.message().await?.map(|message| message.payload) {
            Some(Some(Imported::Chunk(chunk))) => Part::Chunk(chunk),
            Some(_) => {
                let reason = "must be in each message after the first";
                return Err(status::invalid("chunk", reason));
            }
            None => Part::End,
        };
        let ended = matches!(part, Part::End);
        // If the receiver is gone, `storing` has the reason.
        if sender.send(part).await.is_err() || ended {
            break;
        }
    }
    drop(sender);
    let stored = storing.await.map_err(|error| status::internal(&error))??;
    match stored {
        Ok(Some(id)) => Ok(id),
        // The sender is dropped without an end only if the client disconnects.
        Ok(None) => Err(status::internal(&"an import stopped before its end")),
        Err(error) => Err(status::repository("header.name", &error)),
    }
}

/// A message to the thread that stores the model.
enum Part {
    Chunk(Bytes),
    End,
}

/// The header of an import, validated.
struct ImportHeader {
    name: String,
    format: proto::ModelFormat,
    vocabulary: Option<Vocabulary>,
}

fn check_header(header: proto::ImportModelHeader) -> Result<ImportHeader, Status> {
    check_name(&header.name)
        .map_err(|error| status::repository("header.name", &RepositoryError::from(error)))?;
    let format = proto::ModelFormat::try_from(header.format)
        .map_err(|_| status::invalid("header.format", "is not a known format"))?;
    let given = !header.vocabulary.is_empty();
    Ok(ImportHeader {
        name: header.name,
        format,
        vocabulary: given.then(|| Vocabulary::from_chars(header.vocabulary.chars().collect())),
    })
}

/// Returns `None` if the client disconnected.
fn store(
    repository: &Repository,
    header: &ImportHeader,
    mut parts: mpsc::Receiver<Part>,
) -> Result<Option<ModelId>, RepositoryError> {
    let mut upload: Upload = repository.upload()?;
    loop {
        match parts.blocking_recv() {
            Some(Part::Chunk(chunk)) => upload.append(&chunk)?,
            Some(Part::End) => return publish(repository, header, upload).map(Some),
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
        proto::ModelFormat::Pth => true,
        proto::ModelFormat::Safetensors => false,
        proto::ModelFormat::Unspecified => upload.is_torch_checkpoint(),
    };
    let vocabulary = header.vocabulary.as_ref();
    if is_torch_checkpoint {
        repository.import_torch_checkpoint(&header.name, upload, vocabulary)
    } else {
        repository.import(&header.name, upload, vocabulary)
    }
}
