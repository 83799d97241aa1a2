"""Hosts with a network between them: network namespaces on one switch.

Each host has an address of its own, a name, a file `/etc/hosts`, a boot id and a cable,
which can be cut and made slow. Making them needs Linux, the rights of root, `ip` and
`unshare`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import final


# Names of namespaces are known to the whole machine, where other tests may run.
_PREFIX = f"batchkit-{os.getpid()}"
_ETC = Path("/etc/netns")
# By which a system knows that it has not been started again, or is another one.
_BOOT = "/proc/sys/kernel/random/boot_id"


@final
class Network:
    """Some hosts on one switch; they are gone at exit, with all that runs on them."""

    def __init__(self, hosts: int) -> None:
        self.names = [f"host{i + 1}" for i in range(hosts)]
        # Above 127.0.0.1, as in most private networks: gloo connects from the higher
        # address to the lower one, so a host that offers 127.0.0.1 is not found there.
        self.addresses = [f"192.168.77.{i + 1}" for i in range(hosts)]

        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))

    def __enter__(self) -> "Network":
        try:
            _do("ip", "netns", "add", f"{_PREFIX}-switch")
            self._switch("link", "add", "name", "lan", "type", "bridge")
            self._switch("link", "set", "lan", "up")
            for host in range(len(self.names)):
                self._add(host)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def on(self, host: int, *command: str) -> list[str]:
        """A command that runs another one on a host, under the host's name."""
        space = self._space(host)
        boot = self._folder / self.names[host]
        become = f'hostname {self.names[host]} && mount --bind "{boot}" {_BOOT}'
        alone = ("unshare", "--uts", "sh", "-c", f'{become} && exec "$@"', "sh")
        return ["ip", "netns", "exec", space, *alone, *command]

    def name_is(self, host: int, address: str) -> None:
        """The address that a host finds for its own name, from the next command on."""
        lines = ["127.0.0.1 localhost", f"{address} {self.names[host]}"]
        for other, name in enumerate(self.names):
            if other != host:
                lines.append(f"{self.addresses[other]} {name}")
        folder = _ETC / self._space(host)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text("\n".join(lines) + "\n")

    def cut(self, host: int) -> None:
        """Pull the cable of a host."""
        self._switch("link", "set", f"port{host}", "down")

    def mend(self, host: int) -> None:
        """Plug the cable of a host in again."""
        self._switch("link", "set", f"port{host}", "up")

    @contextlib.contextmanager
    def slow(self, host: int, delay: float, loss: float) -> Iterator[None]:
        """Make the cable of a host bad: frames come late by `delay` seconds, or not."""
        port, ends = f"port{host}", ("near", "far")
        script = str(Path(__file__).with_name("bad_cable.py"))
        command = (sys.executable, script, *ends, str(delay), str(loss))
        space = ("ip", "netns", "exec", f"{_PREFIX}-switch")
        with subprocess.Popen(
            [*space, *command], stdout=subprocess.PIPE, text=True
        ) as cable:
            try:
                assert cable.stdout is not None
                assert cable.stdout.readline() == "ready\n"
                self._switch("link", "add", "name", "behind", "type", "bridge")
                for end, bridge in zip(ends, ("behind", "lan"), strict=True):
                    self._switch("link", "set", end, "master", bridge, "up")
                self._switch("link", "set", "behind", "up")
                self._switch("link", "set", port, "master", "behind")
                yield
            finally:
                self._switch("link", "set", port, "master", "lan")
                self._switch("link", "del", "behind")
                cable.kill()

    def _add(self, host: int) -> None:
        space, port = self._space(host), f"port{host}"
        _do("ip", "netns", "add", space)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", space)
        self._switch("link", "add", "name", port, *peer)
        self._switch("link", "set", port, "master", "lan", "up")
        inside = ("ip", "-n", space)
        _do(*inside, "addr", "add", f"{self.addresses[host]}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            _do(*inside, "link", "set", link, "up")
        self.name_is(host, self.addresses[host])
        boot = self._folder / self.names[host]
        boot.write_text(f"boot of {self.names[host]}\n")

    def _switch(self, *words: str) -> None:
        _do("ip", "-n", f"{_PREFIX}-switch", *words)

    def _space(self, host: int) -> str:
        return f"{_PREFIX}-{self.names[host]}"

    def _remove(self) -> None:
        shutil.rmtree(self._folder)
        for space in (*map(self._space, range(len(self.names))), f"{_PREFIX}-switch"):
            pids = subprocess.run(
                ["ip", "netns", "pids", space], capture_output=True, text=True
            ).stdout.split()
            for pid in pids:
                subprocess.run(["kill", "-9", pid], capture_output=True)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
            shutil.rmtree(_ETC / space, ignore_errors=True)


def missing() -> str:
    """The reason why there can be no hosts here; empty if there can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    for program in ("ip", "unshare", "hostname"):
        if shutil.which(program) is None:
            return f"{program} is not installed (iproute2, util-linux, hostname)"
    try:
        with Network(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"this user may not make network namespaces: {error.stderr.strip()}"


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
