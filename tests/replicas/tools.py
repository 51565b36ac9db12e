"""Programs of others that the replica suite needs."""

import shutil

from clock import faketime
from cluster import postgres_programs
from object_store import moto


def missing_tools():
    """Returns what the machine does not have."""
    tools = {
        "postgresql": postgres_programs(),
        "moto (make python)": moto().exists(),
        "nginx": shutil.which("nginx", path="/usr/sbin:/usr/bin"),
        "libfaketime": faketime(),
    }
    return [name for name, found in tools.items() if not found]
