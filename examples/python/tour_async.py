# pip install grpcio grpcio-tools grpcio-status
# python tour_async.py 127.0.0.1:50051 book.txt MODEL     (in the root of the checkout)
import asyncio
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

sys.path.append("proto")  # where the .proto files lie; no code needs to be generated first
training, trainings = grpc.protos_and_services("charlstm/v1/training.proto")
generation, generations = grpc.protos_and_services("charlstm/v1/generation.proto")


async def train(channel, path, model):
    """Streams the corpus up while the events come down."""
    spec = training.TrainingSpec(
        model=model, hidden_size=16, num_layers=1, batch_size=4, sequence_length=16, epochs=2
    )

    async def requests():
        yield training.TrainRequest(spec=spec)
        with open(path, "rb") as corpus:
            while chunk := corpus.read(64 * 1024):
                yield training.TrainRequest(corpus_chunk=chunk)

    async for event in trainings.TrainingServiceStub(channel).Train(requests()):
        if event.HasField("epoch"):
            print(f"epoch {event.epoch.epoch}: loss {event.epoch.train_loss:.3f}")
        elif event.HasField("finished"):
            print(f"trained {event.finished.model}@{event.finished.version}")


async def write(stub, **request):
    """Generates, and returns the text."""
    text = ""
    async for event in stub.Generate(generation.GenerateRequest(**request)):
        text += event.text.text
    return text


async def meet_an_error(stub):
    try:
        await write(stub, model="nobody", prime="a")
    except grpc.aio.AioRpcError as error:
        info = error_details_pb2.ErrorInfo()
        for detail in rpc_status.from_call(error).details:
            detail.Unpack(info)
        print(f"error {error.code().name} {info.reason}: {error.details()}")


async def leave_midway(stub, model, prime):
    call = stub.Generate(generation.GenerateRequest(model=model, prime=prime, max_chars=1_000_000))
    chars = 0
    async for event in call:
        chars += len(event.text.text)
        if chars >= 20:
            break
    call.cancel()
    print(f"left midway, as {(await call.code()).name}")


async def main():
    address, path, model = sys.argv[1:]
    with open(path, encoding="utf-8") as corpus:
        prime = corpus.read(10)
    async with grpc.aio.insecure_channel(address) as channel:
        await train(channel, path, model)
        stub = generations.GenerationServiceStub(channel)
        first = await write(stub, model=model, prime=prime, max_chars=40, session_id="async")
        print(f"wrote {len(first)} characters: {first!r}")
        more = await write(stub, session_id="async", max_chars=10)  # goes on where it stands
        print(f"wrote {len(more)} more")
        await meet_an_error(stub)
        await leave_midway(stub, model, prime)


asyncio.run(main())
