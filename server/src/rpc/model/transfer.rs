//! Models as streams of bytes, out and in, a bounded number of chunks in
//! memory at a time.

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

use super::{blocking, status};
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{
    ModelDescription, ModelId, Repository, RepositoryError, Upload, check_name,
};

/// Bytes of an exported chunk: far under the 4 MiB that clients take by
/// default.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks that wait between the disk and the network.
const CHUNKS_IN_FLIGHT: usize = 4;

type Answer = Result<proto::ExportModelResponse, Status>;

/// A file on its way to a client.
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

    /// Sends the file from a thread that may wait for the disk and for the
    /// client. It ends when the client leaves.
    pub(super) fn start(self) -> ReceiverStream<Answer> {
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            if let Err(status) = self.send(&sender) {
                // Where nobody listens any more, nobody needs to know.
                let _ = sender.blocking_send(Err(status));
            }
        });
        ReceiverStream::new(receiver)
    }

    fn send(mut self, sender: &mpsc::Sender<Answer>) -> Result<(), Status> {
        let id = &self.description.id;
        let answer = |payload| proto::ExportModelResponse {
            payload: Some(payload),
        };
        let header = Exported::Header(proto::ExportModelHeader {
            name: id.name.clone(),
            version: id.version,
            bytes: self.description.bytes,
        });
        if sender.blocking_send(Ok(answer(header))).is_err() {
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
            if sender.blocking_send(Ok(answer(chunk))).is_err() {
                return Ok(());
            }
        }
        // What was sent can not be taken back, but it can be called wrong.
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

/// Stores what a client streams. Nothing is left behind where it leaves or
/// the file is no model.
pub(super) async fn import(
    repository: &Repository,
    mut stream: Streaming<proto::ImportModelRequest>,
) -> Result<ModelId, Status> {
    let header = match stream.message().await?.and_then(|message| message.payload) {
        Some(Imported::Header(header)) => header,
        _ => return Err(status::invalid("header", "the first message must carry it")),
    };
    let arrival = check_header(header)?;

    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let repository = repository.clone();
    let storing = tokio::spawn(blocking(move || store(&repository, &arrival, receiver)));
    // Dropping `sender` before `End` tells that the client left.
    loop {
        let part = match stream.message().await?.map(|message| message.payload) {
            Some(Some(Imported::Chunk(chunk))) => Part::Chunk(chunk),
            Some(_) => {
                let reason = "each message after the first must carry it";
                return Err(status::invalid("chunk", reason));
            }
            None => Part::End,
        };
        let ended = matches!(part, Part::End);
        // A receiver that is gone has a reason; it is told below.
        if sender.send(part).await.is_err() || ended {
            break;
        }
    }
    drop(sender);
    let stored = storing.await.map_err(|error| status::internal(&error))??;
    match stored {
        Ok(Some(id)) => Ok(id),
        // Only a client that left drops the sender without an end.
        Ok(None) => Err(status::internal(&"an import ended without its end")),
        Err(error) => Err(status::repository("header.name", &error)),
    }
}

/// What the thread that stores is given.
enum Part {
    Chunk(Bytes),
    End,
}

/// What the header says, checked.
struct Arrival {
    name: String,
    format: proto::ModelFormat,
    vocabulary: Option<Vocabulary>,
}

fn check_header(header: proto::ImportModelHeader) -> Result<Arrival, Status> {
    check_name(&header.name).map_err(|error| status::repository("header.name", &error))?;
    let format = proto::ModelFormat::try_from(header.format)
        .map_err(|_| status::invalid("header.format", "it is no known format"))?;
    let given = !header.vocabulary.is_empty();
    Ok(Arrival {
        name: header.name,
        format,
        vocabulary: given.then(|| Vocabulary::from_chars(header.vocabulary.chars().collect())),
    })
}

/// `None`: the client left.
fn store(
    repository: &Repository,
    arrival: &Arrival,
    mut parts: mpsc::Receiver<Part>,
) -> Result<Option<ModelId>, RepositoryError> {
    let mut upload: Upload = repository.upload()?;
    loop {
        match parts.blocking_recv() {
            Some(Part::Chunk(chunk)) => upload.append(&chunk)?,
            Some(Part::End) => return settle(repository, arrival, upload).map(Some),
            None => return Ok(None),
        }
    }
}

fn settle(
    repository: &Repository,
    arrival: &Arrival,
    upload: Upload,
) -> Result<ModelId, RepositoryError> {
    let is_notebook = match arrival.format {
        proto::ModelFormat::Pth => true,
        proto::ModelFormat::Safetensors => false,
        proto::ModelFormat::Unspecified => upload.looks_like_notebook(),
    };
    let vocabulary = arrival.vocabulary.as_ref();
    if is_notebook {
        repository.import_notebook(&arrival.name, upload, vocabulary)
    } else {
        repository.import(&arrival.name, upload, vocabulary)
    }
}
