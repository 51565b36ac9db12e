"""Many streams and many sessions at once, for limits.py: what the server's
memory does, and whether it serves as before. How it is shown is not here."""

import asyncio
import contextlib
import random
import string
import time
from pathlib import Path
from statistics import median

import grpc
import run

MODEL = "bench"
# As many distinct characters as the notebook's book has.
ALPHABET = string.ascii_letters + string.digits + " \n.,;:!?'\"-()*&/"
# A server that hangs must end this, not stop it.
DEADLINE_SECONDS = 120
# More than fit the batch, so that streams are also dropped in the queue.
AT_A_TIME = 512
# Not all on one connection: a server takes some hundred streams on each.
CHANNELS = 4
LOOKUPS = 300
# Sessions that the others are compared with, and that come when it is full.
FEW = 1000


def characters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(ALPHABET, k=count))


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise run.Failure("the server is gone")


@contextlib.asynccontextmanager
async def connections(target: str):
    """Channels with a connection each: grpcio would have them share one."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(target, options=own) for _ in range(CHANNELS)]
        yield [await stack.enter_async_context(channel) for channel in opened]


async def each(count: int, at_a_time: int, work) -> float:
    """Awaits work(0) to work(count - 1), some at a time; the seconds taken."""
    numbers = iter(range(count))

    async def worker():
        for number in numbers:
            await work(number)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_a_time, count)):
            group.create_task(worker())
    return time.perf_counter() - began


async def read(call) -> tuple:
    """The text of a generation, and how it finished."""
    text, finished = "", None
    async for response in call:
        text += response.text.text
        if response.HasField("finished"):
            finished = response.finished
    return text, finished


async def drops(pb, target: str, pid: int, count: int) -> dict:
    run.progress(f"{count:,} streams, dropped at random")
    async with connections(target) as channels:
        stubs = [pb.GenerationServiceStub(channel) for channel in channels]
        batch = (await idle(pb, channels[0])).max_batch
        rng = random.Random(4)
        ended_early = 0

        async def one(_):
            nonlocal ended_early
            if not await drop(pb, rng.choice(stubs), rng):
                ended_early += 1

        # Once before, so that what is allocated once is there at the start.
        await each(AT_A_TIME, AT_A_TIME, one)
        await idle(pb, channels[0])
        before = await full_batch(pb, stubs, batch)
        memory = [resident(pid)]
        for _ in range(2):
            await each(count // 2, AT_A_TIME, one)
            left = await idle(pb, channels[0])
            memory.append(resident(pid))
        after = await full_batch(pb, stubs, batch)
    same = sum(mine == theirs for mine, theirs in zip(before, after))
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
    """Opens an endless stream and leaves it: in the queue, while it is primed
    or while text comes, which one half of the callers read. False: the server
    ended it before."""
    prime = characters(rng, rng.randint(1, 20))
    request = pb.GenerateRequest(model=MODEL, prime=prime, max_chars=1_000_000)
    call = stub.Generate(request, timeout=DEADLINE_SECONDS)
    moment = rng.random() * 0.4
    if rng.random() < 0.5:
        await asyncio.sleep(moment)
        call.cancel()
    else:
        asyncio.get_running_loop().call_later(moment, call.cancel)
    try:
        await read(call)
    except asyncio.CancelledError:
        return call.cancelled()
    except grpc.aio.AioRpcError:
        pass
    return False


async def idle(pb, channel):
    """The server's status when nothing is generated any more, or after a while."""
    stub = pb.ServerServiceStub(channel)
    for _ in range(200):
        status = await stub.GetServerStatus(pb.GetServerStatusRequest(), timeout=DEADLINE_SECONDS)
        if status.generations_running == status.generations_queued == 0:
            break
        await asyncio.sleep(0.05)
    return status


async def full_batch(pb, stubs: list, batch: int) -> list:
    """The texts of as many seeded streams at once as fit the batch."""
    texts = [""] * batch

    async def generate(number: int):
        request = pb.GenerateRequest(model=MODEL, prime="a", max_chars=100)
        request.sampling.seed = number
        stub = stubs[number % len(stubs)]
        texts[number], finished = await read(stub.Generate(request, timeout=DEADLINE_SECONDS))
        if finished is None or len(texts[number]) != 100:
            raise run.Failure(f"stream {number} of a full batch ended too early")

    await each(batch, batch, generate)
    return texts


async def sessions(pb, target: str, pid: int, count: int) -> dict:
    run.progress(f"{count:,} idle sessions")
    async with connections(target) as channels:
        stubs = [pb.GenerationServiceStub(channel) for channel in channels]

        async def create(first: int, number: int) -> float:
            """Seconds for each of `number` new sessions."""

            async def one(offset: int):
                request = pb.GenerateRequest(model=MODEL, prime="ab", max_chars=2)
                request.session_id = f"session-{first + offset}"
                stub = stubs[offset % len(stubs)]
                await read(stub.Generate(request, timeout=DEADLINE_SECONDS))

            return await each(number, AT_A_TIME // 2, one) / number

        look = pb.SessionServiceStub(channels[0])
        before = resident(pid)
        first = await create(0, FEW)
        few = await lookups(pb, look, FEW)
        await create(FEW, count - 2 * FEW)
        last = await create(count - FEW, FEW)
        full = resident(pid)
        many = await lookups(pb, look, count)
        evicting = await create(count, FEW)
        listed = await look.ListSessions(pb.ListSessionsRequest(), timeout=DEADLINE_SECONDS)
        gone = [await evicted(pb, look, number) for number in range(FEW)]
    return {
        "sessions": count,
        "resident_bytes": [before, full, resident(pid)],
        "create_seconds": {"first": first, "last": last, "evicting": evicting},
        "lookups": {"few": few, "many": many},
        "kept": listed.total,
        "oldest_evicted": sum(gone),
    }


async def lookups(pb, stub, count: int) -> dict:
    """Median seconds to get one session, and to list a page of 100."""
    rng = random.Random(5)
    times = {"get": [], "list": []}
    for _ in range(LOOKUPS):
        began = time.perf_counter()
        name = f"session-{rng.randrange(count)}"
        await stub.GetSession(pb.GetSessionRequest(session_id=name), timeout=DEADLINE_SECONDS)
        middle = time.perf_counter()
        await stub.ListSessions(pb.ListSessionsRequest(), timeout=DEADLINE_SECONDS)
        times["get"].append(middle - began)
        times["list"].append(time.perf_counter() - middle)
    return {name: median(taken) for name, taken in times.items()}


async def evicted(pb, stub, number: int) -> bool:
    """Whether the server says that it let a session go for want of room."""
    request = pb.GetSessionRequest(session_id=f"session-{number}")
    try:
        await stub.GetSession(request, timeout=DEADLINE_SECONDS)
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
        return b"SESSION_EVICTED_CAPACITY" in details
    return False
