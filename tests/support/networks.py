"""Hosts of their own on one machine: network namespaces, and links between them that may be thin, long and lossy.

A link is a pair of TUN devices and a process that carries packets from one to the other, late, at a rate, and not all
of them. (`tc netem` does the same where the kernel has it.)
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

CAN = os.geteuid() == 0 and shutil.which("ip") is not None and Path("/dev/net/tun").exists()
"""Whether this machine lets us make namespaces."""

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_PACKET = 2048
_LONGEST_QUEUE_S = 1.0


@dataclass(frozen=True)
class Link:
    """What a site's link does to packets, each way: bits a second, share that is lost, seconds on the way."""

    rate: float = 1e9
    loss: float = 0.0
    delay: float = 0.0


def run(*words):
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


class Network:
    """A namespace for each place, and a link from each site to the server; a context manager.

    Args:
        places: Names; the first one is the server.
        link: Of each site.
    """

    def __init__(self, places, link=None):
        self._places, self._link = list(places), link or Link()
        self._mark = uuid.uuid4().hex[:6]
        self._carrier = None

    @property
    def server_address(self):
        return self._address(0)

    def _address(self, number):
        return f"10.77.{int(self._mark[:2], 16)}.{number + 1}"

    def _namespace(self, number):
        return f"f{self._mark}-{number}"

    def inside(self, place):
        """What a command begins with that runs at a place."""
        return ("ip", "netns", "exec", self._namespace(self._places.index(place)))

    def __enter__(self):
        server = self._namespace(0)
        try:
            for number in range(len(self._places)):
                namespace = self._namespace(number)
                run("ip", "netns", "add", namespace)
                run("ip", "-n", namespace, "link", "set", "lo", "up")
            run("ip", "-n", server, "addr", "add", f"{self.server_address}/32", "dev", "lo")
            sites = [self._namespace(number) for number in range(1, len(self._places))]
            words = [sys.executable, __file__, server, json.dumps(asdict(self._link)), *sites]
            self._carrier = subprocess.Popen(words, stdout=subprocess.PIPE)
            assert self._carrier.stdout.readline() == b"ready\n"
            for number in range(1, len(self._places)):
                self._bring_up(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _bring_up(self, number):
        server, site = self._namespace(0), self._namespace(number)
        run("ip", "-n", server, "link", "set", f"tun{number}", "up")
        run("ip", "-n", server, "route", "replace", self._address(number), "dev", f"tun{number}")
        run("ip", "-n", site, "addr", "replace", f"{self._address(number)}/32", "dev", "tun0")
        run("ip", "-n", site, "link", "set", "tun0", "up")
        run("ip", "-n", site, "route", "replace", "default", "dev", "tun0")

    def __exit__(self, *_):
        if self._carrier is not None:
            self._carrier.kill()
            self._carrier.communicate()
        for number in range(len(self._places)):
            with contextlib.suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", self._namespace(number))

    def cut(self, place):
        """Take a site's cable out."""
        run("ip", "-n", self._namespace(self._places.index(place)), "link", "set", "tun0", "down")

    def mend(self, place):
        """Put it back."""
        self._bring_up(self._places.index(place))


def device(namespace, name):
    """A TUN device in a namespace, which this process enters for that."""
    with open(f"/run/netns/{namespace}", "rb") as there:
        if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def carry(server, link, sites):
    """Carry packets until killed."""
    other = {}
    for number, site in enumerate(sites, start=1):
        here, there = device(server, f"tun{number}"), device(site, "tun0")
        other |= {here: there, there: here}
    print("ready", flush=True)
    free = dict.fromkeys(other, 0.0)  # when each device's line is free again
    waiting, dice, count = [], random.Random(), 0  # noqa: S311 - a link's losses
    while True:
        now = time.monotonic()
        timeout = max(0.0, waiting[0][0] - now) if waiting else None
        for descriptor in select.select(list(other), [], [], timeout)[0]:
            with contextlib.suppress(OSError):  # the cable is out
                packet = os.read(descriptor, _PACKET)
                now = time.monotonic()
                free[descriptor] = max(now, free[descriptor]) + 8 * len(packet) / link.rate
                if dice.random() < link.loss or free[descriptor] - now > _LONGEST_QUEUE_S:
                    free[descriptor] -= 8 * len(packet) / link.rate
                    continue
                count += 1
                heapq.heappush(waiting, (free[descriptor] + link.delay, count, other[descriptor], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, descriptor, packet = heapq.heappop(waiting)
            with contextlib.suppress(OSError):
                os.write(descriptor, packet)


if __name__ == "__main__":
    carry(sys.argv[1], Link(**json.loads(sys.argv[2])), sys.argv[3:])
