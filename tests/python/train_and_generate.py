#!/usr/bin/env python3
"""A third-party client: uses only grpcio and the .proto files.

    train_and_generate.py ADDRESS CORPUS MODEL

Trains a small model MODEL on the file CORPUS, generates in a session, makes a
call that fails, and cancels a generation. Prints a line for each check; exits
with code 1 at the first failure.
"""

import sys
import tempfile
from importlib import import_module, resources
from pathlib import Path

import grpc
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[2] / "proto"
# An odd number, so that some characters are split between two messages.
CHUNK_BYTES = 1021
EPOCHS = 2
# If the server hangs, the test must fail, not hang.
DEADLINE_SECONDS = 120


def compile_protos(into: str) -> None:
    bundled = resources.files("grpc_tools") / "_proto"
    files = sorted(str(path) for path in PROTO.glob("charlstm/v1/*.proto"))
    flags = [f"-I{PROTO}", f"-I{bundled}", f"--python_out={into}", f"--grpc_python_out={into}"]
    if protoc.main(["protoc", *flags, *files]) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, into)


def check(condition: bool, description: str) -> None:
    print(f"{'ok' if condition else 'FAILED'}: {description}", flush=True)
    if not condition:
        sys.exit(1)


def train(channel, corpus: bytes, model: str) -> None:
    pb = import_module("charlstm.v1.training_pb2")
    stub = import_module("charlstm.v1.training_pb2_grpc").TrainingServiceStub(channel)

    def requests():
        spec = pb.TrainingSpec(model=model, hidden_size=16, num_layers=1, batch_size=4)
        spec.sequence_length, spec.epochs, spec.seed, spec.sample_chars = 16, EPOCHS, 7, 20
        spec.recipe = "notebook"
        yield pb.TrainRequest(spec=spec)
        for start in range(0, len(corpus), CHUNK_BYTES):
            yield pb.TrainRequest(corpus_chunk=corpus[start : start + CHUNK_BYTES])

    events = list(stub.Train(requests(), timeout=DEADLINE_SECONDS))
    kinds = [event.WhichOneof("event") for event in events]
    check(kinds[0] == "accepted", f"the first event is accepted ({kinds[0]})")
    accepted = events[0].accepted
    text = corpus.decode()
    check(accepted.corpus_chars == len(text), f"the corpus has {len(text)} characters")
    check(accepted.vocabulary_size == len(set(text)), f"{len(set(text))} of them are distinct")
    epochs = [event.epoch.epoch for event in events if event.HasField("epoch")]
    check(epochs == list(range(1, EPOCHS + 1)), f"each epoch has an event, from 1 ({epochs})")
    once_at_the_end = kinds[-1] == "finished" and kinds.count("finished") == 1
    check(once_at_the_end, "the last event is the only finished event")
    finished = events[-1].finished
    check(
        finished.state == pb.STATE_SUCCEEDED and finished.version >= 1,
        "the training succeeds and publishes a version "
        f"({pb.State.Name(finished.state)}, {finished.version})",
    )
    check(0 < finished.train_loss < 10, f"the loss is plausible ({finished.train_loss:.3f})")


def read(call):
    """Reads a generation; returns its started event, its text and its finished event."""
    started, text, finished = None, "", None
    for response in call:
        if response.HasField("started"):
            started = response.started
        elif response.HasField("text"):
            text += response.text.text
        else:
            finished = response.finished
    return started, text, finished


def generate(pb, stub, model: str, prime: str) -> None:
    request = pb.GenerateRequest(
        model=model, prime=prime, max_chars=40, session_id="python", sampling={"seed": 5}
    )
    started, text, finished = read(stub.Generate(request, timeout=DEADLINE_SECONDS))
    check(started.session_id == "python" and started.seed == 5, "session and seed are reported")
    check(len(text) == 40 == finished.chars, f"40 characters are generated ({text!r})")
    check(finished.reason == pb.FINISH_REASON_LENGTH, "the reason is LENGTH")
    more = pb.GenerateRequest(session_id="python", max_chars=10)
    again, text, after = read(stub.Generate(more, timeout=DEADLINE_SECONDS))
    check(len(text) == 10, "the session continues for 10 more characters, without a prompt")
    check(again.position == finished.position, f"it starts at position {again.position}")
    check(after.position == finished.position + 10, "its position advances by 10")


def check_error(pb, stub) -> None:
    try:
        request = pb.GenerateRequest(model="unknown", prime="a")
        read(stub.Generate(request, timeout=DEADLINE_SECONDS))
    except grpc.RpcError as error:
        check(
            error.code() == grpc.StatusCode.NOT_FOUND and "unknown" in error.details(),
            f"an unknown model fails with {error.code().name}: {error.details()}",
        )
    else:
        check(False, "an unknown model fails")


def cancel_generation(pb, stub, model: str, prime: str) -> None:
    request = pb.GenerateRequest(model=model, prime=prime, max_chars=1_000_000)
    call = stub.Generate(request, timeout=DEADLINE_SECONDS)
    chars = 0
    for response in call:
        chars += len(response.text.text)
        if chars >= 20:
            break
    call.cancel()
    check(chars >= 20, f"a long generation is running ({chars} characters)")
    try:
        # Messages that have already arrived can still be read.
        read(call)
        check(False, "a cancelled generation has no finished event")
    except grpc.RpcError as error:
        code = error.code()
        check(code == grpc.StatusCode.CANCELLED, f"it fails with CANCELLED ({code.name})")
    short = pb.GenerateRequest(model=model, prime=prime, max_chars=5)
    _, text, _ = read(stub.Generate(short, timeout=DEADLINE_SECONDS))
    check(len(text) == 5, "the server still serves other calls")


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    address, corpus, model = sys.argv[1], Path(sys.argv[2]).read_bytes(), sys.argv[3]
    with tempfile.TemporaryDirectory() as generated, grpc.insecure_channel(address) as channel:
        compile_protos(generated)
        train(channel, corpus, model)
        pb = import_module("charlstm.v1.generation_pb2")
        stub = import_module("charlstm.v1.generation_pb2_grpc").GenerationServiceStub(channel)
        prime = corpus.decode()[:10]
        generate(pb, stub, model, prime)
        check_error(pb, stub)
        cancel_generation(pb, stub, model, prime)


if __name__ == "__main__":
    main()
