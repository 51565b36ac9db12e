"""The fault suite: crashes, full disks and damaged files against the real program.

    python tests/faults [--full] [--seed N] [SCENARIO ...]

Prints one line per scenario. Exits with 1 at the first broken promise, after
printing the folder that shows it and the seed that repeats the run.
"""

import argparse
import pathlib
import random
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import scenarios  # noqa: E402 (needs the path above)
from base import Base  # noqa: E402
from ending import end, limit_time  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all repetitions; minutes, not seconds")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random moments")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all scenarios")
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=", ".join(scenarios.SCENARIOS))
    arguments = parser.parse_args()
    limit_time(arguments.full)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"fault suite, seed {seed}", flush=True)
    rng = random.Random(seed)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="charlstm-faults-") as folder:
        base = Base(folder)
        for name in arguments.names or scenarios.SCENARIOS:
            try:
                result, seconds = scenarios.run(name, base, rng, arguments.full, arguments.keep)
            except Exception:
                traceback.print_exc()
                print(f"{name:16} FAILED (repeat with --seed {seed} {name})", flush=True)
                return 1
            print(f"{name:16} passed  {seconds:6.1f} s  {result}", flush=True)
    print(f"all passed in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    end(main())
