"""Device, compiler settings and compilation cache of all tests; running code blocks.

Every `python` block of a Markdown page and of a docstring in the package is a test. The
blocks of one page run from top to bottom and share their names, as a reader types them
in. A block in a docstring starts from nothing: it has to work copied on its own.
"""

import gc
import importlib.metadata
import os
from typing import Any

import pytest
from packaging.version import Version
from sybil import Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.example import NotEvaluated
from sybil.parsers.markdown import PythonCodeBlockParser


# JAX reads these when it first looks for devices, hence before any import of it. With
# four host devices sharding is tested on any machine; on the CPU the results are the
# same on any machine. Values that the user has set are kept.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the time of the tests, whose programs run for milliseconds:
# without optimization it takes a quarter. `make slow` and `make matrix` optimize.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Programs do not carry the lines of their source, which takes 3 % less time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
_defaults = {"--xla_force_host_platform_device_count": "4"}
# Later versions have no such flag, and XLA ends a process that passes an unknown one.
_has_emitters = Version(importlib.metadata.version("jaxlib")) < Version("0.11")
if _has_emitters and os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    _defaults["--xla_cpu_use_fusion_emitters"] = "false"
_flags = os.environ.get("XLA_FLAGS", "").split()
_set = {flag.split("=")[0] for flag in _flags}
_flags += [f"{name}={x}" for name, x in _defaults.items() if name not in _set]
os.environ["XLA_FLAGS"] = " ".join(_flags)

# Traces make many objects that live long. Collecting garbage seldom takes a sixth less
# time for the tests.
gc.set_threshold(200_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def programs_on_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """JAX's cache on disk: many tests and pages make new functions of equal programs.

    Each process of pytest-xdist has a cache of its own. JAX writes to one without a
    lock, so another process could read half a program.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    # What the user has set stands, as above.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = str(tmp_path_factory.mktemp("cache"))
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # What was compiled while tests were collected has fixed that there is no cache.
    compilation_cache.reset_cache()


def _fresh(namespace: dict[str, Any]) -> None:
    namespace.clear()
    namespace["__name__"] = "__main__"


def _restore(namespace: dict[str, Any]) -> None:
    """Takes back what a page may have changed for the ones after it."""
    del namespace
    import jax

    jax.config.update("jax_enable_x64", False)


class _Docstrings(PythonDocStringDocument):
    def import_document(self, example: Example) -> None:
        # Called before every block. The base class fills in the names of the module,
        # which a reader of the docstring does not have.
        _fresh(example.namespace)
        raise NotEvaluated


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["*.md", "*.py"],
    document_types={".py": _Docstrings},
    setup=_fresh,
    teardown=_restore,
).pytest()
