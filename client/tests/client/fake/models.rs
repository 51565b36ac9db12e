//! The models of the fake server: one, `m`, whose file is a few bytes.

use charlstm_proto::v1::model_service_server::ModelService;
use charlstm_proto::v1::{
    DeleteModelRequest, DeleteModelResponse, ExportModelHeader, ExportModelRequest,
    ExportModelResponse, GetModelRequest, GetModelResponse, ImportModelRequest,
    ImportModelResponse, ListModelsRequest, ListModelsResponse, Model, TrainingSpecSummary,
    export_model_response,
};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use super::{Events, FakeServer};

/// The content of the file of each model.
pub(crate) const MODEL_FILE: &[u8] = b"the weights of the model";
const MODEL_SHA256: &str = "e6202dea401e05dbe6203d4d5603b7e7d06620002137a7f7d5b456a50cbffd6c";

impl FakeServer {
    fn model(&self, version: u64) -> Model {
        Model {
            name: "m".into(),
            version,
            vocabulary: "\nabc".into(),
            hidden_size: 8,
            num_layers: 2,
            parameters: 1234,
            bytes: MODEL_FILE.len() as u64,
            training: self
                .trained_on
                .lock()
                .unwrap()
                .get(version as usize - 1)
                .map(|sha256| TrainingSpecSummary {
                    recipe: "fast".into(),
                    corpus_sha256: sha256.clone(),
                    ..Default::default()
                }),
            ..Default::default()
        }
    }

    /// Returns the version that `reference` names.
    fn find_model(&self, reference: &str) -> Result<u64, Status> {
        let (name, version) = match reference.split_once('@') {
            Some((name, version)) => (name, version.parse().unwrap()),
            None => (reference, self.version()),
        };
        if name == "m" && (1..=self.version()).contains(&version) {
            return Ok(version);
        }
        let details = ErrorDetails::with_error_info("MODEL_NOT_FOUND", "charlstm.v1", []);
        let message = format!("there is no model {reference:?}; available models: m");
        Err(Status::with_error_details(Code::NotFound, message, details))
    }
}

#[tonic::async_trait]
impl ModelService for FakeServer {
    type ExportModelStream = Events<ExportModelResponse>;

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        Ok(Response::new(ListModelsResponse {
            models: vec![self.model(self.version())],
        }))
    }

    async fn get_model(
        &self,
        request: Request<GetModelRequest>,
    ) -> Result<Response<GetModelResponse>, Status> {
        let version = self.find_model(&request.into_inner().model)?;
        Ok(Response::new(GetModelResponse {
            model: Some(self.model(version)),
            versions: (1..=self.version()).collect(),
        }))
    }

    async fn delete_model(
        &self,
        request: Request<DeleteModelRequest>,
    ) -> Result<Response<DeleteModelResponse>, Status> {
        let model = request.into_inner().model;
        let version = self.find_model(&model)?;
        self.received.lock().unwrap().deleted_models.push(model);
        Ok(Response::new(DeleteModelResponse {
            versions: vec![version],
        }))
    }

    async fn export_model(
        &self,
        request: Request<ExportModelRequest>,
    ) -> Result<Response<Self::ExportModelStream>, Status> {
        let version = self.find_model(&request.into_inner().model)?;
        let header = export_model_response::Payload::Header(ExportModelHeader {
            name: "m".into(),
            version,
            bytes: MODEL_FILE.len() as u64,
            sha256: self.wrong_sha256.unwrap_or(MODEL_SHA256).into(),
        });
        let (first, second) = MODEL_FILE.split_at(7);
        let chunk = |bytes: &'static [u8]| export_model_response::Payload::Chunk(bytes.into());
        let payloads = [header, chunk(first), chunk(second)];
        let responses = payloads.map(|payload| {
            Ok(ExportModelResponse {
                payload: Some(payload),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(responses))))
    }

    async fn import_model(
        &self,
        request: Request<Streaming<ImportModelRequest>>,
    ) -> Result<Response<ImportModelResponse>, Status> {
        let mut upload = request.into_inner();
        while let Some(message) = upload.message().await? {
            self.received.lock().unwrap().imported.push(message);
        }
        self.publish();
        Ok(Response::new(ImportModelResponse {
            model: Some(self.model(self.version())),
        }))
    }
}
