"""A gRPC client made from the .proto files alone."""

import random
import sys
import time

import grpc
from google.rpc import error_details_pb2, status_pb2

from server import ROOT

sys.path.append(str(ROOT / "proto"))
_generation, _generation_services = grpc.protos_and_services("charlstm/v1/generation.proto")
_session, _session_services = grpc.protos_and_services("charlstm/v1/session.proto")
_model, _model_services = grpc.protos_and_services("charlstm/v1/model.proto")
_training, _training_services = grpc.protos_and_services("charlstm/v1/training.proto")

# If grpcio repeats a streaming call whose server stops, and cannot connect again, the
# call never ends, not even at its deadline (seen with versions 1.74 to 1.85).
NO_TRANSPARENT_RETRIES = ("grpc.enable_retries", 0)

# Seconds until a call counts as hanging.
PATIENCE = 300

SHUTDOWN = _generation.FINISH_REASON_SHUTDOWN

LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)


class Interrupted(Exception):
    """The connection broke in the middle of a call; `text` had arrived."""

    def __init__(self, text, started):
        super().__init__(f"the call was interrupted after {len(text)} characters")
        self.text = text
        self.started = started


class Client:
    """The calls that the fault suite makes, with plain results."""

    def __init__(self, address, ca=None, token=None):
        """Connects, with TLS if the certificates of an authority are given, and
        then also with a token."""
        options = [NO_TRANSPARENT_RETRIES]
        if ca is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            credentials = grpc.ssl_channel_credentials(ca)
            if token is not None:
                credentials = grpc.composite_channel_credentials(
                    credentials, grpc.access_token_call_credentials(token))
            self.channel = grpc.secure_channel(address, credentials, options)
        self.generation = _generation_services.GenerationServiceStub(self.channel)
        self.sessions = _session_services.SessionServiceStub(self.channel)
        self.models = _model_services.ModelServiceStub(self.channel)
        self.trainings = _training_services.TrainingServiceStub(self.channel)

    def close(self):
        self.channel.close()

    def generate(self, *, session="", chars, prime="", seed=None, expected=None, model="",
                 stop_after=None, precision=None, top_k=None):
        """Generates and returns (text, finished).

        Raises `Interrupted` if the connection broke, and `grpc.RpcError` if the
        server answered with an error. `stop_after` cancels the call after that
        many characters; `finished` is None then.
        """
        request = _generation.GenerateRequest(model=model, prime=prime, max_chars=chars)
        if session:
            request.session_id = session
        if seed is not None:
            request.sampling.seed = seed
        if top_k is not None:
            request.sampling.top_k = top_k
        if expected is not None:
            request.expected_position = expected
        if precision is not None:
            request.precision = precision
        text, started = "", None
        call = self.generation.Generate(request, timeout=PATIENCE)
        try:
            for event in call:
                kind = event.WhichOneof("event")
                if kind == "started":
                    started = event.started
                elif kind == "text":
                    text += event.text.text
                    if stop_after is not None and len(text) >= stop_after:
                        call.cancel()
                        return text, None
                else:
                    return text, event.finished
        except grpc.RpcError as error:
            reason = reason_of(error)
            if error.code() in LOST and reason is None:
                raise Interrupted(text, started) from error
            raise
        raise Interrupted(text, started)

    def position(self, session):
        """Returns the session's position, or None if there is no such session."""
        try:
            answer = self.sessions.GetSession(
                _session.GetSessionRequest(session_id=session), timeout=30)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return answer.session.position

    def get_session(self, session):
        return self.sessions.GetSession(
            _session.GetSessionRequest(session_id=session), timeout=30).session

    def list_sessions(self):
        """Returns the ids of all sessions."""
        ids, token = [], ""
        while True:
            page = self.sessions.ListSessions(
                _session.ListSessionsRequest(page_size=1000, page_token=token), timeout=30)
            ids += [one.session_id for one in page.sessions]
            token = page.next_page_token
            if not token:
                return ids

    def fork(self, session, new):
        self.sessions.ForkSession(
            _session.ForkSessionRequest(session_id=session, new_session_id=new), timeout=30)

    def delete(self, session):
        self.sessions.DeleteSession(
            _session.DeleteSessionRequest(session_id=session), timeout=30)

    def export(self, session):
        return self.sessions.ExportSession(
            _session.ExportSessionRequest(session_id=session), timeout=30).data

    def import_session(self, data, session):
        self.sessions.ImportSession(
            _session.ImportSessionRequest(data=data, session_id=session), timeout=30)

    def list_models(self):
        """Returns {name: latest version}."""
        answer = self.models.ListModels(_model.ListModelsRequest(), timeout=30)
        return {one.name: one.version for one in answer.models}

    def export_model(self, model):
        """Returns the bytes of a model file."""
        parts = self.models.ExportModel(_model.ExportModelRequest(model=model), timeout=60)
        return b"".join(part.chunk for part in parts)

    def import_model(self, data, name):
        """Stores a model file under a name and returns its version."""
        header = _model.ImportModelRequest(
            header=_model.ImportModelHeader(name=name, format=_model.MODEL_FORMAT_SAFETENSORS))
        chunks = [_model.ImportModelRequest(chunk=data[at:at + 65536])
                  for at in range(0, len(data), 65536)]
        answer = self.models.ImportModel(iter([header, *chunks]), timeout=60)
        return answer.model.version

    def start_training(self, corpus, **spec):
        """Starts a training and returns its id."""
        request = _training.StartTrainingRequest(
            spec=_training.TrainingSpec(**spec), corpus=corpus.encode())
        return self.trainings.StartTraining(request, timeout=30).training_id

    def training_state(self, training):
        answer = self.trainings.GetTraining(
            _training.GetTrainingRequest(training_id=training), timeout=30)
        return _training.State.Name(answer.training.state)

    def training_events(self, training):
        """Yields the events of a training until it ends."""
        return self.trainings.WatchTraining(
            _training.WatchTrainingRequest(training_id=training), timeout=300)

    def resume_training(self, training):
        """Queues a training to continue from its checkpoint."""
        self.trainings.ResumeTraining(
            _training.ResumeTrainingRequest(training_id=training), timeout=30)


def reason_of(error):
    """Returns ErrorInfo.reason of an error, or None if the server sent none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return None


def retry(action, seconds=30, pause=0.05):
    """Repeats `action` until it raises no RpcError, for at most `seconds`."""
    until = time.monotonic() + seconds
    while True:
        try:
            return action()
        except grpc.RpcError:
            if time.monotonic() > until:
                raise
            time.sleep(pause * (1 + random.random()))
