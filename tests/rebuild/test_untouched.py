"""Rebuilding changes nothing: not jax, not blackjax, at no time, in no thread."""

import subprocess
import sys
import textwrap
import threading
from typing import Any

import blackjax
import jax

import batchkit as bk

from .problems import GAUSSIAN


def snapshot() -> dict[str, dict[str, Any]]:
    return {
        name: dict(vars(module))
        for name, module in list(sys.modules.items())
        if module is not None and name.split(".")[0] in ("jax", "blackjax")
    }


def function_details(modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    details = {}
    for name, attributes in modules.items():
        for attribute, value in attributes.items():
            if hasattr(value, "__code__"):
                details[name, attribute] = (
                    value.__code__,
                    value.__defaults__,
                    dict(value.__kwdefaults__ or {}),
                    dict(value.__dict__),
                )
    return details


def test_jax_and_blackjax_stay_identical():
    settings = GAUSSIAN.settings(num_inner_steps=2, num_delete=4)
    positions = GAUSSIAN.positions(0, n_live=8)
    jax.make_jaxpr(blackjax.nss(**settings).init)(positions)  # lazy imports are done
    before = snapshot()
    details = function_details(before)
    seen_during: list[bool] = []

    def loglikelihood_fn(x: Any) -> Any:
        seen_during.append(snapshot() == before)
        return settings["loglikelihood_fn"](x)

    algorithm = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(3))(
        **{**settings, "loglikelihood_fn": loglikelihood_fn}
    )
    state = jax.eval_shape(algorithm.init, positions)
    jax.eval_shape(algorithm.step, jax.random.key(0), state)
    after = snapshot()
    assert seen_during
    assert all(seen_during)
    assert before.keys() == after.keys()
    for name, attributes in before.items():
        assert attributes.keys() == after[name].keys(), name
        for attribute, value in attributes.items():
            assert after[name][attribute] is value, (name, attribute)
    assert function_details(after) == details


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
    lengths: dict[int, list[int]] = {}
    failures: list[BaseException] = []

    def trace(size: int) -> None:
        def loglikelihood_fn(x: Any) -> Any:
            in_trace.wait()  # both threads are inside their traces now
            return settings["loglikelihood_fn"](x)

        try:
            nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(size))
            algorithm = nss(**{**settings, "loglikelihood_fn": loglikelihood_fn})
            jaxpr = jax.make_jaxpr(algorithm.init)(positions)
            eqns = jaxpr.jaxpr.eqns
            lengths[size] = [
                eqn.params["length"] for eqn in eqns if eqn.primitive.name == "scan"
            ]
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=trace, args=(size,)) for size in (3, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    # The other site in `init`, the ravelling of the positions, only moves data.
    assert lengths == {3: [8], 8: [3]}
