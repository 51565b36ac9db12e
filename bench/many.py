"""Measures memory and correctness of the server with many dropped streams and
many sessions. Used by `limits.py` and `sizing.py`, which print the results."""

import asyncio
import contextlib
import random
import string
import time
from pathlib import Path
from statistics import median

import grpc
import measure

MODEL = "bench"
# As many distinct characters as the text of the notebook has.
ALPHABET = string.ascii_letters + string.digits + " \n.,;:!?'\"-()*&/"
# If the server hangs, the benchmark must fail, not hang.
DEADLINE_SECONDS = 120
# More than the batch size, so that streams are also dropped in the queue.
CONCURRENCY = 512
# Several connections: a server accepts a few hundred streams on each.
CHANNELS = 4
LOOKUPS = 300
# Number of sessions for the comparison, and of those created at the limit.
FEW = 1000


def characters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(ALPHABET, k=count))


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise measure.Failure("the server is not running")


@contextlib.asynccontextmanager
async def connections(target: str):
    """Opens channels with one connection each; by default grpcio shares one."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(target, options=options) for _ in range(CHANNELS)]
        yield [await stack.enter_async_context(channel) for channel in opened]


async def each(count: int, concurrency: int, work) -> float:
    """Awaits work(0) to work(count - 1), at most `concurrency` at a time; returns
    the elapsed seconds."""
    numbers = iter(range(count))

    async def worker():
        for number in numbers:
            await work(number)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, count)):
            group.create_task(worker())
    return time.perf_counter() - started


async def read(call) -> tuple:
    """Reads a generation; returns its text and its finished event."""
    text, finished = "", None
    async for response in call:
        text += response.text.text
        if response.HasField("finished"):
            finished = response.finished
    return text, finished


async def drops(pb, target: str, pid: int, count: int) -> dict:
    measure.progress(f"{count:,} streams, dropped at random times")
    async with connections(target) as channels:
        stubs = [pb.GenerationServiceStub(channel) for channel in channels]
        batch = (await idle(pb, channels[0])).max_batch
        rng = random.Random(4)
        ended_early = 0

        async def one(_):
            nonlocal ended_early
            if not await drop(pb, rng.choice(stubs), rng):
                ended_early += 1

        # Warm up: one-time allocations must not count.
        await each(CONCURRENCY, CONCURRENCY, one)
        await idle(pb, channels[0])
        before = await full_batch(pb, stubs, batch)
        memory = [resident(pid)]
        for _ in range(2):
            await each(count // 2, CONCURRENCY, one)
            left = await idle(pb, channels[0])
            memory.append(resident(pid))
        after = await full_batch(pb, stubs, batch)
    same = sum(first == second for first, second in zip(before, after))
    return {
        "streams": count,
        "ended_by_server": ended_early,
        "resident_bytes": memory,
        "running_after": left.generations_running,
        "queued_after": left.generations_queued,
        "batch": batch,
        "same_texts_after": same,
    }


async def drop(pb, stub, rng: random.Random) -> bool:
    """Starts a long generation and cancels it: in the queue, during prefill or
    during generation. Half of the callers read the text. Returns False if the
    server ended the stream earlier."""
    prompt = characters(rng, rng.randint(1, 20))
    request = pb.GenerateRequest(model=MODEL, prime=prompt, max_chars=1_000_000)
    call = stub.Generate(request, timeout=DEADLINE_SECONDS)
    delay = rng.random() * 0.4
    if rng.random() < 0.5:
        await asyncio.sleep(delay)
        call.cancel()
    else:
        asyncio.get_running_loop().call_later(delay, call.cancel)
    try:
        await read(call)
    except asyncio.CancelledError:
        return call.cancelled()
    except grpc.aio.AioRpcError:
        pass
    return False


async def idle(pb, channel):
    """Waits until no generation is left, for at most 10 s; returns the status of
    the server."""
    stub = pb.ServerServiceStub(channel)
    for _ in range(200):
        status = await stub.GetServerStatus(pb.GetServerStatusRequest(), timeout=DEADLINE_SECONDS)
        if status.generations_running == status.generations_queued == 0:
            break
        await asyncio.sleep(0.05)
    return status


async def full_batch(pb, stubs: list, batch: int) -> list:
    """Runs as many seeded streams as fit in the batch; returns their texts."""
    texts = [""] * batch

    async def generate(number: int):
        request = pb.GenerateRequest(model=MODEL, prime="a", max_chars=100)
        request.sampling.seed = number
        stub = stubs[number % len(stubs)]
        texts[number], finished = await read(stub.Generate(request, timeout=DEADLINE_SECONDS))
        if finished is None or len(texts[number]) != 100:
            raise measure.Failure(f"stream {number} of a full batch ended early")

    await each(batch, batch, generate)
    return texts


async def sessions(pb, target: str, pid: int, count: int) -> dict:
    measure.progress(f"{count:,} idle sessions")
    async with connections(target) as channels:
        stubs = [pb.GenerationServiceStub(channel) for channel in channels]

        async def create(first: int, number: int) -> float:
            """Creates `number` sessions; returns the mean seconds per session."""

            async def one(offset: int):
                request = pb.GenerateRequest(model=MODEL, prime="ab", max_chars=2)
                request.session_id = f"session-{first + offset}"
                stub = stubs[offset % len(stubs)]
                await read(stub.Generate(request, timeout=DEADLINE_SECONDS))

            return await each(number, CONCURRENCY // 2, one) / number

        stub = pb.SessionServiceStub(channels[0])
        before = resident(pid)
        first = await create(0, FEW)
        few = await lookups(pb, stub, FEW)
        await create(FEW, count - 2 * FEW)
        last = await create(count - FEW, FEW)
        full = resident(pid)
        many = await lookups(pb, stub, count)
        evicting = await create(count, FEW)
        listed = await stub.ListSessions(pb.ListSessionsRequest(), timeout=DEADLINE_SECONDS)
        oldest_evicted = [await evicted(pb, stub, number) for number in range(FEW)]
    return {
        "sessions": count,
        "resident_bytes": [before, full, resident(pid)],
        "create_seconds": {"first": first, "last": last, "evicting": evicting},
        "lookups": {"few": few, "many": many},
        "kept": listed.total,
        "oldest_evicted": sum(oldest_evicted),
    }


async def lookups(pb, stub, count: int) -> dict:
    """Median seconds of GetSession, and of ListSessions with a page of 100."""
    rng = random.Random(5)
    times = {"get": [], "list": []}
    for _ in range(LOOKUPS):
        started = time.perf_counter()
        session_id = f"session-{rng.randrange(count)}"
        await stub.GetSession(
            pb.GetSessionRequest(session_id=session_id), timeout=DEADLINE_SECONDS
        )
        middle = time.perf_counter()
        await stub.ListSessions(pb.ListSessionsRequest(), timeout=DEADLINE_SECONDS)
        times["get"].append(middle - started)
        times["list"].append(time.perf_counter() - middle)
    return {name: median(seconds) for name, seconds in times.items()}


async def evicted(pb, stub, number: int) -> bool:
    """True if the server reports that the session was evicted at the limit."""
    request = pb.GetSessionRequest(session_id=f"session-{number}")
    try:
        await stub.GetSession(request, timeout=DEADLINE_SECONDS)
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
        return b"SESSION_EVICTED_CAPACITY" in details
    return False
