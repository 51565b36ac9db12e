"""The faults: each scenario returns a line for the report, or raises."""

import json
import pathlib
import shutil
import tempfile
import time

from crashes import failed_starts, kills, stops, terminal_closed, two_crashes
from disks import full_disk, read_only_disk, slow_disk
from files import backup, damaged_files, version_0_1
from retries import interleavings

SCENARIOS = {
    # name: (function, repetitions in the short suite, in the full suite)
    "kill-9": (kills, 12, 200),
    "clean-stop": (stops, 4, 20),
    "terminal-closed": (terminal_closed, 1, 1),
    "failed-start": (failed_starts, 6, 20),
    "two-crashes": (two_crashes, 4, 20),
    "interleavings": (interleavings, 60, 1000),
    "full-disk": (full_disk, 1, 1),
    "read-only": (read_only_disk, 1, 1),
    "slow-disk": (slow_disk, 1, 10),
    "damaged-files": (damaged_files, 1, 1),
    "version-0.1": (version_0_1, 1, 1),
    "backup": (backup, 1, 1),
}


def run(name, base, rng, full, keep):
    """Runs one scenario in a temporary folder; returns (result, seconds)."""
    function, short, long = SCENARIOS[name]
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"charlstm-{name}-"))
    begin = time.monotonic()
    try:
        result = function(base, folder, rng, long if full else short)
    except BaseException:
        print(json.dumps({"scenario": name, "kept": str(folder)}), flush=True)
        raise
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return result, time.monotonic() - begin
