"""What most scenarios start from: a data folder with one small model."""

import pathlib
import shutil

from client import Client
from ledger import Broken, Reference
from server import Server

WORDS = "arma virumque cano Troiae qui primus ab oris".split()

# Characters of each reference text.
REFERENCE_CHARS = 4100


def corpus(chars):
    """Returns verse with a simple rule, which a small network learns in seconds."""
    words = []
    length = 0
    number = 0
    while length < chars:
        word = WORDS[(number * number + number // 7) % len(WORDS)]
        words.append(word + ("\n" if number % 9 == 8 else " "))
        length += len(words[-1])
        number += 1
    return "".join(words)


def weights(file):
    """Returns the weights of a model file without its metadata."""
    length = int.from_bytes(file[:8], "little")
    return file[8 + length:]


def train(client, model, epochs=1, chars=3000, **spec):
    """Trains a small model on this many characters, and waits for it."""
    small = {"hidden_size": 16, "num_layers": 2, "batch_size": 8, "sequence_length": 20,
             "seed": 5, "sample_chars": 0}
    training = client.start_training(
        corpus(chars), model=model, epochs=epochs, **{**small, **spec})
    for event in client.training_events(training):
        if event.WhichOneof("event") == "finished":
            return training, event.finished
    raise Broken("the events of a training ended without `finished`")


class Base:
    """A server with one small model, its reference texts and its model file."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        server = Server(self.folder)
        try:
            self._fill(server)
        finally:
            if server.process.poll() is None:
                server.kill()

    def _fill(self, server):
        client = Client(server.address)
        _, finished = train(client, "verse")
        if finished.version != 1:
            raise Broken(f"the first training published version {finished.version}")
        self.reference = Reference(client, "verse@1", REFERENCE_CHARS, range(1, 5))
        self.model_file = client.export_model("verse@1")
        client.close()
        code = server.stop()
        if code != 0:
            raise Broken(f"a clean stop exited with {code}:\n{server.log()[-2000:]}")

    def copy(self, folder):
        """Copies the data folder for one scenario."""
        target = pathlib.Path(folder) / "data"
        shutil.copytree(self.folder / "data", target)
        return pathlib.Path(folder)
