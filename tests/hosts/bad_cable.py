"""A bad cable: frames between two interfaces, late, and some of them lost.

    python tests/hosts/bad_cable.py LEFT RIGHT DELAY LOSS

makes the interfaces LEFT and RIGHT, prints a line, and passes frames between them until
it is killed. It does what `tc netem` does, which some kernels lack.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque


# From linux/if_tun.h: an interface that a program reads and writes, bare frames.
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def interface(name: str) -> int:
    """Make an interface, and return the file of its frames."""
    file = os.open("/dev/net/tun", os.O_RDWR)
    request = struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI)
    fcntl.ioctl(file, _TUNSETIFF, request)
    return file


def main(left: str, right: str, delay: float, loss: float) -> None:
    ends = interface(left), interface(right)
    other = dict(zip(ends, reversed(ends), strict=True))
    print("ready", flush=True)
    lost = random.Random(0)
    late: deque[tuple[float, int, bytes]] = deque()
    while True:
        wait = max(0.0, late[0][0] - time.monotonic()) if late else None
        for end in select.select(ends, (), (), wait)[0]:
            frame = os.read(end, 2**16)
            if lost.random() >= loss:
                late.append((time.monotonic() + delay, other[end], frame))
        while late and late[0][0] <= time.monotonic():
            _, end, frame = late.popleft()
            os.write(end, frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
