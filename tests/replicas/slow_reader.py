"""A client that stops reading in the middle of a call."""

import threading

import grpc

import client as rpc
from client import Client, reason_of
from ledger import PROMPT


class SlowReader:
    """A call whose client reads one message, and the rest once `resumed` is set."""

    def __init__(self, address, name, seed):
        self.client, self.name, self.seed = Client(address), name, seed
        self.resumed, self.outcome = threading.Event(), None
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        request = rpc._generation.GenerateRequest(
            session_id=self.name, prime=PROMPT, max_chars=1_000_000, expected_position=0,
            model="verse@1")
        request.sampling.seed = self.seed
        try:
            for event in self.client.generation.Generate(request, timeout=120):
                if event.WhichOneof("event") == "text":
                    self.begun.set()
                    self.resumed.wait()
                if event.WhichOneof("event") == "finished":
                    self.outcome = "finished"
        except grpc.RpcError as error:
            self.outcome = reason_of(error) or error.code().name
        finally:
            self.begun.set()
