"""How a suite ends: in a limited time, and without waiting for threads that hang."""

import faulthandler
import os
import sys

# Reached only by a suite that hangs: several times what it needs on a busy machine.
SHORT_MINUTES = 30
FULL_MINUTES = 180


def limit_time(full, extra_minutes=0):
    """Ends the process with 1 after the time limit, and prints where each thread is."""
    minutes = (FULL_MINUTES if full else SHORT_MINUTES) + extra_minutes
    faulthandler.dump_traceback_later(minutes * 60, exit=True)


def print_stacks():
    """Prints where each thread is."""
    sys.stdout.flush()
    faulthandler.dump_traceback(all_threads=True)


def end(code):
    """Ends the process, although threads may still run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
