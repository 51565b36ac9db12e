"""Calls a server with many tasks at once, in a process of its own.

    python tests/attacks/press.py ADDRESS TASKS SECONDS

A task whose call is rejected waits for 100 ms. Prints the number of calls that were
admitted, rejected and failed otherwise, and the 99th percentile of the duration of
the admitted ones in milliseconds, as JSON.
"""

import asyncio
import json
import statistics
import sys
import time

import grpc

import client as rpc

CHARS = 200


class Pressure:
    """What the tasks have seen."""

    def __init__(self):
        self.durations = []
        self.rejected = 0
        self.failures = []

    async def call(self, stub, until):
        """Calls until the time is over."""
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


async def press(address, tasks, seconds):
    """Returns the figures."""
    pressure = Pressure()
    until = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc._generation_services.GenerationServiceStub(channel)
        await asyncio.gather(*(pressure.call(stub, until) for _ in range(tasks)))
    durations = pressure.durations
    cut = statistics.quantiles(durations, n=100, method="inclusive") if len(durations) > 1 else []
    return {
        "admitted": len(durations), "rejected": pressure.rejected,
        "failures": pressure.failures, "p99": cut[98] * 1000 if cut else None,
    }


if __name__ == "__main__":
    given, tasks, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(press(given, int(tasks), float(seconds)))))
