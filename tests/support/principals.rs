//! A server with principals, and calls of each of them.

use std::path::PathBuf;
use std::process::Command;

use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::model_service_client::ModelServiceClient;
use charlstm_proto::v1::session_service_client::SessionServiceClient;
use charlstm_proto::v1::training_service_client::TrainingServiceClient;
use charlstm_proto::v1::*;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::files::write_secret;
use super::{Server, process, train_small, wire};

/// A principal with a token of its own.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    name: &'static str,
    roles: &'static [&'static str],
    /// Lines of TOML.
    quotas: &'static str,
}

impl Entry {
    pub(crate) const fn new(name: &'static str, roles: &'static [&'static str]) -> Self {
        Self {
            name,
            roles,
            quotas: "",
        }
    }

    pub(crate) const fn with_quotas(self, quotas: &'static str) -> Self {
        Self { quotas, ..self }
    }
}

/// Makes a token, and returns it and the entry of the file.
pub(crate) fn token(name: &str, roles: &[&str]) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_charlstm-server"));
    command
        .args(["token", "--name", name, "--role"])
        .args(roles);
    let output = process::output(&mut command);
    assert!(output.status.success(), "{}", output.stderr);
    let (token, entry) = output.stdout.split_once('\n').unwrap();
    (token.to_owned(), entry.to_owned())
}

/// A server with the principals, and a connection to it.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    channel: Channel,
    pub(crate) tokens: Vec<(&'static str, String)>,
    entries: Vec<(&'static str, String)>,
}

impl Fixture {
    /// Starts a server in a folder, which may contain data.
    pub(crate) async fn start(folder: TempDir, principals: &[Entry]) -> Self {
        let (mut tokens, mut entries) = (Vec::new(), Vec::new());
        for Entry {
            name,
            roles,
            quotas,
        } in principals
        {
            let (token, entry) = token(name, roles);
            write_secret(&folder.path().join(name), &token);
            tokens.push((*name, token));
            entries.push((*name, format!("{entry}{quotas}\n")));
        }
        let path = folder.path().join("principals.toml");
        write_secret(&path, &without(&entries, ""));
        let flags = ["--principals", path.to_str().unwrap()];
        let server = Server::start_in(folder, &flags);
        let channel = server.connect().await;
        Self {
            server,
            channel,
            tokens,
            entries,
        }
    }

    /// The file of the principals.
    pub(crate) fn file(&self) -> PathBuf {
        self.server.folder().join("principals.toml")
    }

    /// Removes a principal from the file; with an empty name, none.
    pub(crate) fn rewrite_without(&self, name: &str) {
        write_secret(&self.file(), &without(&self.entries, name));
    }

    /// The flags of the client for a principal.
    pub(crate) fn flags(&self, name: &str) -> [String; 2] {
        let path = self.server.folder().join(name);
        ["--token-file".to_owned(), path.to_str().unwrap().to_owned()]
    }

    pub(crate) fn train(&self, name: &str, model: &str) -> Option<i32> {
        let flags = self.flags(name);
        train_small(&self.server, model, &[&flags[0], &flags[1]]).code
    }

    /// A request of a principal.
    pub(crate) fn of<T>(&self, name: &str, message: T) -> Request<T> {
        let mut tokens = self.tokens.iter();
        let (_, token) = tokens.find(|(other, _)| *other == name).unwrap();
        let mut request = Request::new(message);
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        request
    }

    pub(crate) fn generation(&self) -> GenerationServiceClient<Channel> {
        GenerationServiceClient::new(self.channel.clone())
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone())
    }

    pub(crate) fn trainings(&self) -> TrainingServiceClient<Channel> {
        TrainingServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn generate(
        &self,
        name: &str,
        request: GenerateRequest,
    ) -> Result<wire::Generated, Status> {
        let stream = self.generation().generate(self.of(name, request)).await?;
        wire::rest(&mut stream.into_inner()).await
    }

    pub(crate) async fn get(
        &self,
        name: &str,
        id: &str,
        owner: Option<&str>,
    ) -> Result<Session, Status> {
        let request = GetSessionRequest {
            session_id: id.to_owned(),
            owner: owner.map(str::to_owned),
        };
        let response = self.sessions().get_session(self.of(name, request)).await?;
        Ok(response.into_inner().session.unwrap())
    }

    /// The sessions that a principal sees, as `owner/id`.
    pub(crate) async fn list(
        &self,
        name: &str,
        owner: Option<&str>,
    ) -> Result<Vec<String>, Status> {
        let request = ListSessionsRequest {
            owner: owner.map(str::to_owned),
            ..ListSessionsRequest::default()
        };
        let response = self
            .sessions()
            .list_sessions(self.of(name, request))
            .await?;
        let response = response.into_inner();
        let sessions = response.sessions.iter();
        let mut names: Vec<_> = sessions
            .map(|session| format!("{}/{}", session.owner, session.session_id))
            .collect();
        assert_eq!(response.total, names.len() as u64);
        names.sort();
        Ok(names)
    }

    /// Starts a generation of a principal.
    pub(crate) async fn open(
        &self,
        name: &str,
        request: GenerateRequest,
    ) -> Result<Streaming<GenerateResponse>, Status> {
        let request = self.of(name, request);
        let response = self.generation().generate(request).await;
        response.map(tonic::Response::into_inner)
    }
}

fn without(entries: &[(&str, String)], name: &str) -> String {
    let others = entries.iter().filter(|(other, _)| *other != name);
    others.map(|(_, entry)| entry.as_str()).collect()
}
