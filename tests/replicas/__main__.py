"""Replicas: what several servers on one database and one object store must hold.

    python tests/replicas [--full] [--seed N] [SCENARIO ...]

Prints one line per scenario. Exits with 1 at the first broken promise, after
printing the seed that repeats the run.
"""

import argparse
import os
import pathlib
import random
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import models_and_trainings as shared  # noqa: E402 (needs the path above)
from object_store import ObjectStore  # noqa: E402
from postgres import Postgres, programs  # noqa: E402

SCENARIOS = {
    "preconditions": lambda replicas, store, rng, full: shared.ignored_preconditions(replicas, store),
    "models": lambda replicas, store, rng, full: shared.concurrent_models(replicas, rng, full),
    "trainings": lambda replicas, store, rng, full: shared.training_takeover(replicas, rng, full),
    "outage": shared.object_store_outage,
    "migration": lambda replicas, store, rng, full: shared.migration(replicas, rng),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all repetitions; minutes, not seconds")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random moments")
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    arguments = parser.parse_args()
    if programs() is None:
        reason = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CHARLSTM_REQUIRE_ALL"):
            sys.exit(f"replicas: {reason}")
        print(f"replicas: skipped: {reason}")
        return 0
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"replicas, seed {seed}", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="charlstm-replicas-") as folder:
        folder = pathlib.Path(folder)
        postgres, store = Postgres(folder / "postgres"), ObjectStore(folder)
        try:
            for name in arguments.names or SCENARIOS:
                # Each scenario has its own moments, whichever others run.
                rng = random.Random(f"{seed} {name}")
                replicas = shared.Replicas(folder / name, postgres.create(name), store, name)
                start = time.monotonic()
                try:
                    result = SCENARIOS[name](replicas, store, rng, arguments.full)
                except Exception:
                    traceback.print_exc()
                    for server in replicas.servers.values():
                        print(f"--- {server.log_path}\n{server.log()[-3000:]}")
                    print(f"{name:16} FAILED (repeat with --seed {seed} {name})", flush=True)
                    return 1
                finally:
                    replicas.stop()
                print(f"{name:16} passed  {time.monotonic() - start:6.1f} s  {result}", flush=True)
        finally:
            store.stop()
            postgres.stop()
    print(f"all passed in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
