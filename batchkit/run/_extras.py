"""Imports of modules when they are used: the one place of delayed imports.

Extras are optional. `scipy.stats` takes longer to import than all of batchkit, and
blackjax computes while it is imported: that starts JAX's backend, after which
`jax.distributed.initialize` refuses, and a forked process hangs in its first
compilation.
"""

import importlib
from typing import Any


def delayed(module: str) -> Any:
    """Import a module that `import batchkit` must not import, such as `"blackjax"`."""
    return importlib.import_module(module)


def extra(module: str, name: str, caller: str) -> Any:
    """Import a module of an extra.

    ```python
    import pytest
    from batchkit.run import extra

    with pytest.raises(ImportError, match=r"pip install 'batchkit-jax\\[plots\\]'"):
        extra("no_such_package", "plots", "plot_corner")
    ```

    **Arguments:**

    - `module`: the module, such as `"matplotlib.figure"`.
    - `name`: the extra of batchkit that installs it, such as `"plots"`.
    - `caller`: the function that needs it, for the message.

    **Returns:**

    The module.

    **Raises:**

    `ImportError`, which says how to install it, if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"{caller} needs {package}, which cannot be imported: {error}. Install it "
            f"by `pip install 'batchkit-jax[{name}]'`.",
            name=package,
        ) from error
