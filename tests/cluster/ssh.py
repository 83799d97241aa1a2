"""A server of ssh on this machine, with keys and a configuration of its own."""

import os
import subprocess
from pathlib import Path
from typing import Final, final

from .programs import Started, environment, find, free_port, missing, wait_until


_SERVER: Final = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
PasswordAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
SetEnv {variables}
"""
# A name that has not a meaning of its own to the resolver is that of this machine, too.
_CLIENT: Final = """
Host *
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    UserKnownHostsFile /dev/null
    StrictHostKeyChecking no
    LogLevel ERROR
"""


def why_not() -> str:
    """Return why the server cannot be started here, or nothing."""
    return missing("sshd", "ssh", "ssh-keygen")


@final
class Server:
    """A server of ssh, to which `ssh` connects whatever the host; ended at exit."""

    def __init__(self, folder: Path) -> None:
        """Write keys, the configuration, and an `ssh` that uses them, to a folder."""
        folder.mkdir()
        self._folder = folder
        plain = environment(folder)
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name]
            subprocess.run(command, cwd=folder, check=True)
        # ssh carries none of the variables of the tests to the programs.
        variables = " ".join(
            f'"{name}={plain[name]}"'
            for name in plain
            if name.startswith(("JAX_", "PYTHON"))
        )
        port = free_port()
        (folder / "server").write_text(
            _SERVER.format(port=port, folder=folder, variables=variables)
        )
        (folder / "client").write_text(_CLIENT.format(port=port, folder=folder))
        wrapper = folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {find("ssh")} -F {folder}/client "$@"\n')
        wrapper.chmod(0o755)
        path = os.pathsep.join([str(wrapper.parent), plain["PATH"]])
        self.env = {**plain, "PATH": path}

    def __enter__(self) -> "Server":
        # sshd starts itself again for each connection, by its full path; root's server
        # needs this folder.
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = str(find("sshd")), "-D", "-e", "-f", str(self._folder / "server")
        self._server = Started(self._folder, *command, env=self.env)
        try:
            self._server.wait_for("Server listening")
            wait_until(self._answers, lambda: self._server.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def _answers(self) -> bool:
        command = ["ssh", "-o", "BatchMode=yes", "localhost", "true"]
        return subprocess.run(command, env=self.env, check=False).returncode == 0
