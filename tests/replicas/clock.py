"""The clock of one replica is set to another time while calls run."""

import pathlib
import time

from cluster import Cluster
from ledger import Broken
from traffic import traffic_to

HOUR = 3600
# Seconds from the real time: forwards, backwards, and beyond the time after which
# sessions are evicted.
JUMPS = [2 * HOUR, -24 * HOUR, 400 * 24 * HOUR, 0, 400 * 24 * HOUR]


def faketime():
    """Returns the path of the library that changes the time for a program, or None."""
    return next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class Clock:
    """The wall clock of a program that is started with `prefix`. Other clocks stay as they
    are, as they do if an administrator or NTP sets the time."""

    def __init__(self, folder):
        self.file = pathlib.Path(folder) / "time-offset"
        self.set(0)
        self.prefix = [
            "env", f"LD_PRELOAD={faketime()}", f"FAKETIME_TIMESTAMP_FILE={self.file}",
            "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ]

    def set(self, seconds):
        """Sets it to the real time plus some seconds."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self.file)


def clock_jumps(base, folder, postgres, rng, seconds):
    """Calls go on for some seconds after each jump."""
    clock = Clock(folder)
    with Cluster(base, folder, postgres, prefixes={0: clock.prefix}) as cluster:
        with traffic_to(cluster, base, rng) as traffic:
            for offset in JUMPS:
                time.sleep(seconds)
                clock.set(offset)
            time.sleep(seconds)
        if traffic.repeated:
            raise Broken(f"calls failed: {traffic.repeated}")
        jumped = cluster.replicas[0]
        jumped.stop()
        stamp = jumped.log().splitlines()[-1].split()[0]
        if int(stamp[:4]) <= time.gmtime().tm_year:
            raise Broken(f"the clock of the replica did not jump: {stamp}")
        return f"{len(JUMPS)} jumps, {traffic.summary()}"


SCENARIOS = {
    # name: (function, size in the short suite, in the full suite)
    "clock-jumps": (clock_jumps, 1, 10),
}
