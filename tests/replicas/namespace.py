"""A network namespace for one replica, which can be cut off from the database."""

import os
import random
import subprocess
import time


def can_use_namespaces():
    """Returns whether this system lets a test create networks."""
    if os.geteuid() != 0:
        return False
    name = f"charlstm-{os.getpid()}-probe"
    try:
        created = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return created.returncode == 0


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, stdout=subprocess.DEVNULL)


class Namespace:
    """A network namespace with two links to this one: one for clients, one to the
    database."""

    def __init__(self):
        number = random.SystemRandom().randrange(1 << 16)
        self.name = f"charlstm-{number:04x}"
        # Where programs in the namespace reach this one, and the other way around.
        self.database_host = f"10.213.{number >> 8}.{(number & 63) * 4 + 1}"
        self.address = f"10.214.{number >> 8}.{(number & 63) * 4 + 2}"
        self.outside = {"database": f"ch{number:04x}d0", "clients": f"ch{number:04x}c0"}
        self.prefix = ("ip", "netns", "exec", self.name)
        _ip("netns", "add", self.name)
        try:
            self._connect("database", "10.213", number)
            self._connect("clients", "10.214", number)
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.delete()
            raise

    def _connect(self, purpose, network, number):
        near, far = self.outside[purpose], self.outside[purpose][:-1] + "1"
        base, first = f"{network}.{number >> 8}", (number & 63) * 4
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", self.name)
        _ip("addr", "add", f"{base}.{first + 1}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", self.name, "addr", "add", f"{base}.{first + 2}/30", "dev", far)
        _ip("-n", self.name, "link", "set", far, "up")

    def cut(self, seconds):
        """Drops every packet to and from the database for a while."""
        _ip("link", "set", self.outside["database"], "down")
        time.sleep(seconds)
        _ip("link", "set", self.outside["database"], "up")

    def delete(self):
        _ip("netns", "delete", self.name)
