"""Uploads and downloads that are cancelled or stop."""

import threading
import time

import client as rpc
from base import corpus, train
from client import Client
from frames import Connection, message
from victim import attacked, require, serving, threads

IMPORT = "/charlstm.v1.ModelService/ImportModel"
EXPORT = "/charlstm.v1.ModelService/ExportModel"
TRAIN = "/charlstm.v1.TrainingService/Train"


def cancelled_uploads(base, full):
    """A client gives up in the middle of an upload: nothing starts."""
    attempts = 60 if full else 15
    with serving(base.fresh_copy()) as server:
        client = Client(server.address)
        spec = rpc._training.TrainingSpec(model="cut-off", hidden_size=16, epochs=1)

        def upload(until):
            yield rpc._training.TrainRequest(spec=spec)
            for _ in range(40):
                yield rpc._training.TrainRequest(corpus_chunk=corpus(1000).encode())
                time.sleep(0.001)
            until.wait(1)

        for number in range(attempts):
            until = threading.Event()
            timeout = 0.03 if number % 3 == 0 else 30
            call = client.trainings.Train(upload(until), timeout=timeout)
            time.sleep(0.02 + number % 5 * 0.01)
            call.cancel()
            until.set()
        time.sleep(1)
        listed = client.trainings.ListTrainings(rpc._training.ListTrainingsRequest(), timeout=30)
        started = [one.spec.model for one in listed.trainings if one.spec.model == "cut-off"]
        require(not started, f"{len(started)} of {attempts} cancelled uploads were trained")
        require("cut-off" not in client.list_models(), "a model was published")
        client.close()
    return f"{attempts} cancelled uploads started nothing"


def stalled_transfers(base, full):
    """Imports, uploads and exports that stop; then the server is stopped."""
    count = 1000 if full else 200
    with serving(base.fresh_copy()) as server:
        export = message(rpc._model.ExportModelRequest(model="verse").SerializeToString())
        header = rpc._model.ImportModelHeader(name="stalled")
        header = message(rpc._model.ImportModelRequest(header=header).SerializeToString())
        spec = rpc._training.TrainingSpec(model="stalled")
        spec = message(rpc._training.TrainRequest(spec=spec).SerializeToString())

        def attack():
            connections = []
            for number in range(count):
                if number % 100 == 0:
                    connections.append(Connection(server.address, initial_window=10))
                connection = connections[-1]
                connection.call(IMPORT, header)
                connection.call(EXPORT, export, end=True)
                if number % 10 == 0:
                    connection.call(TRAIN, spec)
            return connections

        figures, connections = attacked(server, attack, full)
        client = Client(server.address)
        # Takes the slot of a transfer that has been idle for some seconds.
        rpc.retry(lambda: train(client, "other"), seconds=30)
        require(threads(server) < 100, f"{threads(server)} threads")
        begin = time.monotonic()
        require(server.stop() == 0, "the exit code is 0")
        stopped = time.monotonic() - begin
        require(stopped < 10, f"the server stopped after {stopped:.0f} s")
        for connection in connections:
            connection.close()
    return f"{count} of each: {figures}, a training succeeded, stopped in {stopped:.1f} s"
