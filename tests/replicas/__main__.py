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
import threading
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults"), str(HERE.parents[1] / "scripts")]

from base import Base  # noqa: E402 (needs the path above)
from cluster import Postgres  # noqa: E402
from ending import end, limit_time  # noqa: E402
from scenarios import SCENARIOS, run  # noqa: E402
from tools import missing_tools  # noqa: E402
import upgrade  # noqa: E402


# Of the full suite: what measures runs alone; what mostly waits runs next to the rest,
# each lane with a database server of its own.
ALONE = ["cost", "sizing"]
WAITING = [
    ["suspended", "partition", "outage"],
    ["trainings", "store-outage", "clients"],
]


class Suite:
    """One run of scenarios."""

    def __init__(self, arguments, seed, folder, base):
        self.arguments, self.seed, self.base = arguments, seed, base
        self.folder = pathlib.Path(folder)
        self.has_failed = threading.Event()

    def run(self, name, scenarios):
        """Runs scenarios one after another on a new database server, until one fails in
        any lane."""
        folder = self.folder / name
        folder.mkdir()
        postgres = Postgres(folder)
        try:
            for scenario in scenarios:
                if self.has_failed.is_set() or not self._run(scenario, postgres):
                    return
        finally:
            postgres.stop(signal.SIGINT)

    def run_lanes(self, lanes):
        """Runs lists of scenarios at the same time."""
        threads = [threading.Thread(target=self.run, args=(f"lane{number}", scenarios))
                   for number, scenarios in enumerate(lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self, name, postgres):
        rng = random.Random(f"{self.seed} {name}")
        full, keep = self.arguments.full, self.arguments.keep
        try:
            result, seconds = run(name, self.base, postgres, rng, full, keep)
        except Exception:
            self.has_failed.set()
            traceback.print_exc()
            print(f"{name:18} FAILED (repeat with --seed {self.seed} {name})", flush=True)
            return False
        print(f"{name:18} passed  {seconds:6.1f} s  {result}", flush=True)
        return True


def record_golden(base, folder):
    """Writes the golden files of this version."""
    postgres = Postgres(folder)
    try:
        upgrade.record(base, pathlib.Path(folder) / "golden", postgres)
    finally:
        postgres.stop(signal.SIGINT)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all repetitions; minutes, not seconds")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random moments")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all scenarios")
    parser.add_argument("--record-golden", action="store_true",
                        help="write the golden files of this version, and end")
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    arguments = parser.parse_args()
    limit_time(arguments.full)
    if missing := missing_tools():
        print(f"replica suite: skipped: not installed: {', '.join(missing)}")
        return 1 if os.environ.get("CHARLSTM_REQUIRE_ALL") else 0
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"replica suite, seed {seed}", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="charlstm-replicas-") as folder:
        # For the user that PostgreSQL runs as.
        os.chmod(folder, 0o711)
        base = Base(pathlib.Path(folder) / "base")
        if arguments.record_golden:
            return record_golden(base, folder)
        suite = Suite(arguments, seed, folder, base)
        if arguments.full and not arguments.names:
            suite.run("alone", ALONE)
            others = set(SCENARIOS).difference(ALONE, *WAITING)
            suite.run_lanes([*WAITING, [name for name in SCENARIOS if name in others]])
        else:
            suite.run("all", arguments.names or SCENARIOS)
    if suite.has_failed.is_set():
        return 1
    print(f"all passed in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    end(main())
