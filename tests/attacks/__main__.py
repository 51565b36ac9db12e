"""The attack suite: what anyone on the network can do to a real server.

    python tests/attacks [--full] [--soak MINUTES] [SCENARIO ...]

Without --full, a short subset with fewer repetitions. Prints one line for each
scenario. Exits with 1 if the server did not behave as required in any of them.
"""

import argparse
import pathlib
import resource
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]

import base  # noqa: E402 (needs the path above)
import scenarios  # noqa: E402
from ending import end, limit_time  # noqa: E402


class Base(base.Base):
    """The data folder with one model."""

    def fresh_copy(self):
        """Copies the data folder to a new folder, which is returned."""
        return self.copy(tempfile.mkdtemp(dir=self.folder.parent))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all of it; minutes")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed load for this time")
    names = [one.__name__ for one in scenarios.SCENARIOS]
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=", ".join(names))
    arguments = parser.parse_args()
    limit_time(arguments.full, extra_minutes=arguments.soak or 0)
    # The attacks hold thousands of connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    chosen = [one for one in scenarios.SCENARIOS if one.__name__ in arguments.names]
    chosen = chosen or (scenarios.SCENARIOS if arguments.full else scenarios.SHORT)
    failed = 0
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="charlstm-attacks-") as folder:
        model = Base(pathlib.Path(folder) / "base")
        if arguments.soak:
            print(f"{'soak':22} {scenarios.soak(model, arguments.soak)}", flush=True)
            return 0
        for scenario in chosen:
            since = time.monotonic()
            try:
                result = scenario(model, arguments.full)
            except Exception:  # noqa: BLE001 (each scenario is reported)
                traceback.print_exc()
                result, failed = "FAILED", failed + 1
            seconds = time.monotonic() - since
            print(f"{scenario.__name__:22} {seconds:6.1f} s  {result}", flush=True)
    print(f"{failed} failed, {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    end(main())
