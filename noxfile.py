"""The unit tests on every Python, with the oldest dependencies, and with types checked.

`make matrix` runs all of these.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nox
from packaging.requirements import Requirement


PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True
nox.options.download_python = "never"


def _candidates(version: str) -> Iterator[Path]:
    """Interpreters that may be Python `version`, those of PATH first."""
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
    if pyenv := shutil.which("pyenv"):
        root = subprocess.check_output([pyenv, "root"], text=True).strip()
        yield from Path(root, "versions").glob(f"{version}.*/bin/python{version}")


def _works(python: Path) -> bool:
    # pyenv puts a shim on PATH for every Python it has, which fails unless that Python
    # is switched on.
    check = subprocess.run(
        [python, "-c", "import ensurepip, venv"], capture_output=True
    )
    return check.returncode == 0


def _find(version: str) -> None:
    """Puts a working Python `version` first on PATH, where nox looks; without one, nox
    fails and names it."""
    for python in _candidates(version):
        if _works(python):
            os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
            return


for _version in PYTHONS:
    _find(_version)


def _lowest() -> list[str]:
    """Every runtime dependency at the lower bound that pyproject.toml declares."""
    pins = []
    for line in PROJECT["project"]["dependencies"]:
        requirement = Requirement(line)
        (bound,) = (s.version for s in requirement.specifier if s.operator == ">=")
        pins.append(f"{requirement.name}=={bound}")
    return pins


def _install(session: nox.Session, *pins: str) -> None:
    session.install("--quiet", *pins, "-e", ".[test,docs]")
    session.run("python", "-m", "pip", "check")
    session.run("python", "-m", "pip", "freeze", "--exclude-editable")


def _test(session: nox.Session, *options: str, optimized: bool) -> None:
    parallel = ("--numprocesses", "auto", "--dist", "loadfile")
    # `make test` leaves out most of XLA's optimizations, which is faster. Users have
    # them, and so have the sessions with the oldest and the newest JAX.
    env = {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not optimized))}
    session.run("pytest", *parallel, *options, "tests", *session.posargs, env=env)


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest dependencies that this Python has."""
    _install(session)
    _test(session, optimized=session.python == PYTHONS[-1])


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The lower bounds."""
    _install(session, *_lowest())
    _test(session, optimized=True)


@nox.session(python=PYTHONS[-1])
def beartype(session: nox.Session) -> None:
    """The types of every call, as `make beartype` checks them."""
    _install(session)
    _test(
        session,
        "--jaxtyping-packages=batchkit,beartype.beartype",
        "--ignore=tests/coverage",
        "--ignore=tests/processes",
        optimized=False,
    )


@nox.session(python=PYTHONS[0])
def described(session: nox.Session) -> None:
    """Programs that are compiled for accelerators which are not here."""
    session.install("--quiet", "-e", ".[test,cuda-plans,tpu-plans]")
    env = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    files = ("tests/devices", "tests/continuous/test_launches.py")
    session.run("pytest", "-m", "slow or not slow", *files, *session.posargs, env=env)
