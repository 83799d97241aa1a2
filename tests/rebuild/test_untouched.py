"""Rebuilding changes nothing: not jax, not blackjax, at no time, in no thread."""

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any

import blackjax
import jax

import batchkit as bk

from .problems import GAUSSIAN


def snapshot() -> dict[Any, Any]:
    """All names of both packages, and what their functions consist of."""
    found: dict[Any, Any] = {}
    for name, module in list(sys.modules.items()):
        if module is None or name.split(".")[0] not in ("jax", "blackjax"):
            continue
        for attribute, value in list(vars(module).items()):
            found[name, attribute] = value
            if isinstance(value, FunctionType):
                parts = value.__code__, value.__defaults__, *value.__dict__.values()
                found.update({(name, attribute, i): x for i, x in enumerate(parts)})
                defaults = (value.__kwdefaults__ or {}).items()
                found.update({(name, attribute, i): x for i, x in defaults})
    return found


def is_same(before: dict[Any, Any]) -> bool:
    after = snapshot()
    same = all(after[place] is value for place, value in before.items())
    return before.keys() == after.keys() and same


def test_jax_and_blackjax_stay_identical():
    settings = GAUSSIAN.settings(num_inner_steps=2, num_delete=4)
    positions = GAUSSIAN.positions(0, n_live=8)
    jax.make_jaxpr(blackjax.nss(**settings).init)(positions)  # lazy imports are done
    before = snapshot()
    same_during: list[bool] = []

    def loglikelihood_fn(x: Any) -> Any:
        same_during.append(is_same(before))
        return settings["loglikelihood_fn"](x)

    algorithm = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(3))(
        **{**settings, "loglikelihood_fn": loglikelihood_fn}
    )
    state = jax.eval_shape(algorithm.init, positions)
    jax.eval_shape(algorithm.step, jax.random.key(0), state)
    assert same_during
    assert all(same_during)
    assert is_same(before)


def test_importing_batchkit_leaves_jax_and_blackjax_as_they_are():
    # In a fresh interpreter: what an import changes is only visible before it.
    script = """
        import sys
        import blackjax, jax, equinox, jaxtyping
        import blackjax.ns.nss
        names = [n for n in sys.modules if n.split(".")[0] in ("jax", "blackjax")]
        before = {n: dict(vars(sys.modules[n])) for n in names}
        import batchkit
        for n in names:
            after = vars(sys.modules[n])
            for k, v in before[n].items():
                assert after[k] is v, (n, k)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_two_threads_trace_with_two_batchers_at_once():
    settings = GAUSSIAN.settings(num_inner_steps=2, num_delete=6)
    positions = GAUSSIAN.positions(0, n_live=24)
    in_trace = threading.Barrier(2, timeout=60)

    def loglikelihood_fn(x: Any) -> Any:
        in_trace.wait()  # both threads are inside their traces now
        return GAUSSIAN.loglikelihood_fn(x)

    def scan_lengths(size: int) -> list[int]:
        nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(size))
        algorithm = nss(**{**settings, "loglikelihood_fn": loglikelihood_fn})
        eqns = jax.make_jaxpr(algorithm.init)(positions).jaxpr.eqns
        return [x.params["length"] for x in eqns if x.primitive.name == "scan"]

    # The other site in `init`, the ravelling of the positions, only moves data.
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(scan_lengths, (3, 8))] == [[8], [3]]
