"""The device the tests run on, and how the code blocks of the documentation run.

Every `python` block of a Markdown page and of a docstring in the package is a test. The
blocks of one page run from top to bottom and share their names, as a reader types them
in. A block in a docstring starts from nothing: it has to work copied on its own.
"""

import os
from typing import Any

from sybil import Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.example import NotEvaluated
from sybil.parsers.markdown import PythonCodeBlockParser


# JAX reads both when it first looks for devices, hence before any import of it. With
# four host devices sharding is tested on any machine; on the CPU the results are the
# same on any machine. What the user has set stands.
_COUNT = "--xla_force_host_platform_device_count"
_flags = os.environ.get("XLA_FLAGS", "")
if _COUNT not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} {_COUNT}=4".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")


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
