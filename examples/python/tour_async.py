# Usage, in the root of the repository:
#   pip install grpcio grpcio-tools grpcio-status
#   python examples/python/tour_async.py 127.0.0.1:50051 book.txt MODEL
import asyncio
import os
import sys
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

sys.path.append("proto")  # folder of the .proto files; grpcio loads them without generated code
training, trainings = grpc.protos_and_services("charlstm/v1/training.proto")
generation, generations = grpc.protos_and_services("charlstm/v1/generation.proto")


def connect(address):
    """Connects with TLS if CHARLSTM_TLS_CA is set, the file of the certificate authority."""
    authority = os.environ.get("CHARLSTM_TLS_CA")
    if authority is None:
        return grpc.aio.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes())
    return grpc.aio.secure_channel(address, credentials)


def token():
    """The metadata of each call: the access token in CHARLSTM_TOKEN_FILE, if it is set."""
    file = os.environ.get("CHARLSTM_TOKEN_FILE")
    return (("authorization", f"Bearer {Path(file).read_text().strip()}"),) if file else ()


async def train(channel, path, model):
    """Uploads the corpus, and prints the events of the training as they arrive."""
    spec = training.TrainingSpec(
        model=model, hidden_size=16, num_layers=1, batch_size=4, sequence_length=16, epochs=2
    )

    async def requests():
        yield training.TrainRequest(spec=spec)
        with open(path, "rb") as corpus:
            while chunk := corpus.read(64 * 1024):
                yield training.TrainRequest(corpus_chunk=chunk)

    async for event in trainings.TrainingServiceStub(channel).Train(requests(), metadata=token()):
        if event.HasField("epoch"):
            print(f"epoch {event.epoch.epoch}: loss {event.epoch.train_loss:.3f}")
        elif event.HasField("finished"):
            print(f"trained {event.finished.model}@{event.finished.version}")


async def generate(stub, **request):
    """Returns the generated text."""
    text = ""
    async for event in stub.Generate(generation.GenerateRequest(**request), metadata=token()):
        text += event.text.text
    return text


async def show_error(stub):
    """Makes a call that fails, and prints the details of the error."""
    try:
        await generate(stub, model="unknown", prime="a")
    except grpc.aio.AioRpcError as error:
        info = error_details_pb2.ErrorInfo()
        for detail in rpc_status.from_call(error).details:
            detail.Unpack(info)
        print(f"error {error.code().name} {info.reason}: {error.details()}")


async def cancel_early(stub, model, prime):
    """Cancels a long generation after 20 characters."""
    request = generation.GenerateRequest(model=model, prime=prime, max_chars=1_000_000)
    call = stub.Generate(request, metadata=token())
    chars = 0
    async for event in call:
        chars += len(event.text.text)
        if chars >= 20:
            break
    call.cancel()
    print(f"stopped early with {(await call.code()).name}")


async def main():
    if len(sys.argv) != 4:
        sys.exit("usage: tour_async.py ADDRESS CORPUS MODEL")
    address, path, model = sys.argv[1:]
    with open(path, encoding="utf-8") as corpus:
        prime = corpus.read(10)
    async with connect(address) as channel:
        await train(channel, path, model)
        stub = generations.GenerationServiceStub(channel)
        first = await generate(stub, model=model, prime=prime, max_chars=40, session_id="async")
        print(f"generated {len(first)} characters: {first!r}")
        more = await generate(stub, session_id="async", max_chars=10)  # continues the session
        print(f"generated {len(more)} more")
        await show_error(stub)
        await cancel_early(stub, model, prime)


asyncio.run(main())
