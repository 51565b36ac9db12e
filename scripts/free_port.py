"""Ports for servers that tests start."""

import pathlib
import random
import socket


def free_port() -> int:
    """Returns a port of 127.0.0.1 on which nothing listens.

    Not one of the ports that the kernel gives to outgoing connections: while a server is
    restarted, such a connection could take its port.
    """
    outgoing = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    first_outgoing = int(outgoing.split()[0])
    while True:
        port = random.SystemRandom().randrange(10000, max(first_outgoing, 20000))
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
