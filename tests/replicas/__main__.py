"""The replica suite: several servers on one database, and what happens to them.

    python tests/replicas [--full] [--seed N] [SCENARIO ...]

Prints one line per scenario. Exits with 1 at the first broken promise, after
printing the folder that shows it and the seed that repeats the run.
"""

import argparse
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]

from base import Base  # noqa: E402 (needs the path above)
from cluster import Postgres, missing_tools  # noqa: E402
from scenarios import SCENARIOS, run  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all repetitions; minutes, not seconds")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random moments")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all scenarios")
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    arguments = parser.parse_args()
    if missing := missing_tools():
        print(f"replica suite: skipped: not installed: {', '.join(missing)}")
        return 1 if os.environ.get("CHARLSTM_REQUIRE_ALL") else 0
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"replica suite, seed {seed}", flush=True)
    rng = random.Random(seed)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="charlstm-replicas-") as folder:
        base = Base(folder)
        postgres = Postgres(folder)
        try:
            for name in arguments.names or SCENARIOS:
                try:
                    result, seconds = run(name, base, postgres, rng, arguments.full, arguments.keep)
                except Exception:
                    traceback.print_exc()
                    print(f"{name:18} FAILED (repeat with --seed {seed} {name})", flush=True)
                    return 1
                print(f"{name:18} passed  {seconds:6.1f} s  {result}", flush=True)
        finally:
            postgres.stop(signal.SIGINT)
    print(f"all passed in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
