"""Calls a server with many tasks at once, in a process of its own.

    python tests/attacks/load_client.py ADDRESS TASKS SECONDS

A task whose call is rejected waits for 100 ms. Prints, as JSON, the numbers of calls
that were admitted and rejected, the errors of those that failed otherwise, and the
99th percentile of the duration of the admitted ones in milliseconds.
"""

import asyncio
import json
import statistics
import sys
import time

import grpc

import client as rpc

CHARS = 200


class Results:
    """The outcomes of the calls of all tasks."""

    def __init__(self):
        self.durations = []
        self.rejected = 0
        self.failures = []

    async def call(self, stub, until):
        """Repeats a call until the time is over."""
        request = rpc._generation.GenerateRequest(model="verse", prime="arma ", max_chars=CHARS)
        while time.monotonic() < until:
            begin = time.monotonic()
            try:
                async for _ in stub.Generate(request, timeout=60):
                    pass
                self.durations.append(time.monotonic() - begin)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.failures.append(f"{error.code()}: {error.details()}")
                    return
                self.rejected += 1
                await asyncio.sleep(0.1)


async def run(address, tasks, seconds):
    """Runs the tasks; returns the figures."""
    results = Results()
    until = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc._generation_services.GenerationServiceStub(channel)
        await asyncio.gather(*(results.call(stub, until) for _ in range(tasks)))
    durations = results.durations
    cut = statistics.quantiles(durations, n=100, method="inclusive") if len(durations) > 1 else []
    return {
        "admitted": len(durations), "rejected": results.rejected,
        "failures": results.failures, "p99": cut[98] * 1000 if cut else None,
    }


if __name__ == "__main__":
    address, tasks, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(run(address, int(tasks), float(seconds)))))
