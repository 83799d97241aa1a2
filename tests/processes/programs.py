"""What the processes of a test run, each of them the same."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import batchkit as bk
from batchkit.run._program import Program
from batchkit.run._trees import to_host

from ..helpers import collectives, unchecked
from ..nested.problems import gaussian
from .together import say


def quick(folder: Path) -> dict[str, Any]:
    """A little of everything, with a sampler that compiles in no time."""
    said = disagreeing(folder, "sizes")["said"]
    some = jax.jit(bk.Sharded()(lambda x: jnp.sin(x) * jnp.arange(2)))(np.ones(5))
    even = Program(bk.Sharded()(jnp.cos))(np.arange(8.0))
    done = run(folder, batcher="Sharded, Chunked", sampler="walk")
    return {**_named({"some": some, "even": even}), **done, "said": said}


def shares(folder: Path) -> dict[str, Any]:
    """`Sharded` over all devices, for inputs that lie in many ways."""
    del folder
    mesh = Mesh(np.array(jax.devices()), ("tasks",))
    whole, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("tasks"))
    inners = {
        "vmap": bk.Vmap(),
        "chunked": bk.Chunked(2),
        "sequential": bk.Sequential(),
        "continuous": bk.Continuous(2),
        "auto": bk.Auto("1 MB"),
    }
    w = jnp.arange(3.0)

    def task(x: Any) -> Any:
        y = jax.lax.while_loop(lambda y: y < 100, lambda y: 1.5 * y + 1, x[0])
        return {"y": y, "sum": jnp.sum(x * w), "n": jnp.int32(7) + x.astype(int)[0]}

    out: dict[str, Any] = {}
    for n in (1, 2, 5, 8):
        x = np.arange(1.0, 1 + 3 * n).reshape(n, 3)
        inputs = {"host": x, "local": jnp.asarray(x)}
        inputs["whole"] = _global(x, whole)
        if n % len(jax.devices()) == 0:
            inputs["spread"] = _global(x, spread)
        for where, array in inputs.items():
            out[f"{n} {where}"] = jax.jit(bk.Sharded()(task))(array)
        out[f"{n} not jitted"] = bk.Sharded()(task)(x)
        out[f"{n} mesh"] = jax.jit(bk.Sharded(mesh, "tasks")(task))(x)
    for name, inner in inners.items():
        out[f"inner {name}"] = jax.jit(bk.Sharded(inner=inner)(task))(x)
    own = Mesh(np.array(jax.local_devices()), ("tasks",))
    out["own devices"] = jax.jit(bk.Sharded(own)(task))(x)
    out["set_mesh"] = jax.jit(bk.Sharded()(task))(x)
    if jax.process_index() == 0:  # looking needs no company
        assert bk.memory(bk.Sharded()(lambda x: x + 3), x).total > 0
        bk.explain(bk.Sharded()(lambda x: x + 4), x)
    if len(jax.devices()) > 1:
        y = _global(np.ones((8, 3)), spread)
        assert collectives(bk.Sharded()(task), y) == ([], [])
        _, inside = collectives(bk.Sharded(inner=bk.Chunked(1))(task), np.ones((5, 3)))
        assert inside == []
    return _named(out)


def disagreeing(folder: Path, what: str) -> dict[str, Any]:
    """Processes that do not give the same arguments."""
    i, said = jax.process_index(), ""
    try:
        if what == "sizes":
            jax.jit(bk.Sharded()(jnp.cos))(np.ones(4 * (i + 1)))
        elif what == "dtypes":
            jax.jit(bk.Sharded()(jnp.sin))(np.ones(4, (np.float32, np.float64)[i]))
        elif what == "closures":
            w = jnp.ones(2 + i)
            bk.Sharded()(lambda x: x + w.sum())(np.ones(4))
        elif what == "outputs":
            bk.Sharded()(lambda x: x + jnp.ones(2 + i))(np.ones(4))
        elif what in OF_SHARDS:
            _of_shards(**OF_SHARDS[what][i])
        else:
            changed = OF_NESTED[what] if i == 1 else {}
            gaussian(2).run(**{"num_live": 20, "num_delete": 4, **changed})
    except ValueError as error:
        said = str(error)
    del folder
    return {"said": np.array(said)}


def _of_shards(**given: Any) -> None:
    arguments: Any = {
        "data": np.arange(8.0),
        "rng_key": jax.random.key(0),
        "num_shards": 2,
        "positions": np.zeros(2),
        "plan": bk.SamplingPlan(2, 4, num_chains=2),
        "progress": False,
        **given,
    }
    likelihood = lambda x, rows: -0.5 * jnp.sum((rows - x) ** 2)
    bk.run_shards(lambda x: -0.5 * x**2, likelihood, **arguments)


# What one of two processes gives.
OF_NESTED: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "stop": {"stop": bk.MaxSteps(5)},
    "num_delete": {"num_delete": 5},
    "layout": {"batcher": bk.Sharded()},  # tracing it waits for the other process
}
# What each of two processes gives.
OF_SHARDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "data": ({}, {"data": np.ones(8)}),
    "num_shards": ({}, {"num_shards": 3}),
    "batcher": ({}, {"batcher": bk.Chunked(2)}),
    "combine": ({}, {"combine": "kde"}),
    "on_failure": ({}, {"on_failure": "drop"}),
    "refine": ({}, {"refine": False}),
}


def step(folder: Path, batcher: str, num_delete: int) -> dict[str, Any]:
    """`init` and some steps of nested slices."""
    del folder
    algorithm = gaussian(2).algorithm(num_delete, _batcher(batcher), 3)
    state = jax.jit(algorithm.init)(gaussian(2).positions(24))
    one_step = jax.jit(algorithm.step)
    infos = []
    out = {"first": to_host(state)}
    for i in range(2):
        state, info = one_step(jax.random.key(i), state)
        infos.append(to_host(info))
    return _named({**out, "state": to_host(state), "infos": infos})


def run(
    folder: Path,
    batcher: str = "Sharded",
    slow: float = 0.0,
    every: float = 1e-3,
    num_live: int = 48,
    num_delete: int = 8,
    fraction: float = 0.05,
    fails_at: int | None = None,
    saved: bool = True,
    sampler: str = "nss",
    other: bool = False,
) -> dict[str, Any]:
    """A whole run, with a checkpoint after every block of steps.

    With `other` it has another likelihood, as chains and shards below.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")

    def tell(progress: Any) -> None:
        say("step", progress.step)
        time.sleep(slow)
        if fails_at is not None and progress.step >= fails_at:
            raise LookupError("the user's function fails")

    from batchkit.run import _resumable, _saving

    _resumable._BLOCK_SECONDS = 0.0
    # However long saving takes, as on a busy machine.
    _saving._RUN_PER_COST = 0
    problem = gaussian(2)
    place = bk.Checkpoint(folder / "run.h5", every=every)
    arguments = problem.arguments(num_delete, _batcher(batcher), 3)
    if other:
        likelihood = arguments["loglikelihood_fn"]
        arguments["loglikelihood_fn"] = lambda x: 2 * likelihood(x)
    if sampler != "nss":
        laid_out = arguments.pop("batcher")
        arguments["api"] = lambda *, num_inner_steps, **given: _walk(
            batcher=laid_out, **given
        )
    with unchecked():
        result = bk.run_nested(
            **arguments,
            rng_key=jax.random.key(0),
            positions=problem.positions(num_live),
            progress=tell,
            stop=bk.RemainingEvidence(fraction),
            checkpoint=place if saved else None,
        )
    return {
        "positions": result.dead.positions,
        "loglikelihood": result.dead.loglikelihood,
        "birth": result.dead.loglikelihood_birth,
        "evidence": np.array([result.log_evidence, result.log_evidence_err]),
        "counts": np.array([result.num_steps, result.num_evaluations or 0]),
    }


def chains(
    folder: Path,
    batcher: str = "Sharded",
    slow: float = 0.0,
    every: float = 1e-3,
    exact: bool = False,
    count: int = 5,
    saved: bool = True,
    other: bool = False,
) -> dict[str, Any]:
    """Chains, with a checkpoint after every block of draws."""
    rows = np.random.default_rng(0).normal(size=(41, 2))
    factor = 1.0 if other else 0.5
    likelihood = lambda x, rows: -factor * jnp.sum((rows - x) ** 2)
    prior = lambda x: -0.5 * jnp.sum(x**2)
    if exact:
        mesh = Mesh(np.array(jax.devices()), ("rows",))
        data = bk.ShardedData(rows, mesh)
        logdensity = bk.sharded_logdensity(prior, likelihood, data)
    else:
        logdensity = lambda x: prior(x) + likelihood(x, rows)
    with unchecked():
        result = bk.run_chains(
            blackjax.hmc,
            logdensity,
            jax.random.key(0),
            np.random.default_rng(1).normal(size=(count, 2)),
            num_warmup=10,
            num_samples=40,
            num_integration_steps=2,
            block=4,
            batcher=_batcher(batcher),
            **_telling(folder, slow, every, saved),
        )
    return {
        "samples": result.samples,
        "logdensity": np.asarray(result.logdensity),
        "step size": np.asarray(result.step_size),
        "divergences": np.asarray(result.diverging),
    }


def shards(
    folder: Path,
    batcher: str = "Sharded",
    slow: float = 0.0,
    every: float = 1e-3,
    num_shards: int = 3,
    saved: bool = True,
    other: bool = False,
) -> dict[str, Any]:
    """Shards, of which some run again, with a checkpoint after every block."""
    from batchkit.shards import _shard_tries

    # Every shard of which a transition diverges runs again.
    _shard_tries.DIVERGENCE_NOTE = 0.0
    factor = 1.0 if other else 0.5
    with unchecked():
        result = bk.run_shards(
            lambda x: -0.5 * jnp.sum(x**2),
            lambda x, rows: -factor * jnp.sum((rows - x) ** 2),
            np.random.default_rng(0).normal(size=(41, 2)),
            jax.random.key(0),
            num_shards=num_shards,
            positions=np.random.default_rng(1).normal(size=(2, 2)),
            api=blackjax.hmc,
            num_integration_steps=2,
            divergence_threshold=0.3,
            plan=bk.SamplingPlan(10, 40, num_chains=2),
            on_failure="drop",
            block=4,
            batcher=_batcher(batcher),
            **_telling(folder, slow, every, saved),
        )
    check = result.gradient_check
    assert check is not None
    return {
        "matrix": check.matrix,
        "mean gradient": check.mean_gradient,
        "shards": np.stack([x.samples for x in result.shards]),
        "samples": result.samples,
        "tries": np.array([len(x) for x in result.tries]),
        "used": np.array(result.used),
        "divergences": np.array([x.divergences for x in result.shards]),
    }


def _telling(folder: Path, slow: float, every: float, saved: bool) -> dict[str, Any]:
    """Options of a run that tells how far it is, slowly, and is saved."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    from batchkit.run import _resumable, _saving

    _resumable._BLOCK_SECONDS = 1e9
    _saving._RUN_PER_COST = 0
    count = iter(range(1, 10**6))

    def tell(progress: Any) -> None:
        if progress.draws > 0:
            say("step", next(count))
            time.sleep(slow)

    if not saved:
        return {"progress": tell}
    place = bk.Checkpoint(folder / "run.h5", every=every)
    return {"progress": tell, "checkpoint": place}


class _Particles(NamedTuple):
    position: Any
    logdensity: Any
    loglikelihood: Any
    loglikelihood_birth: Any


class _State(NamedTuple):
    particles: _Particles


class _Info(NamedTuple):
    particles: _Particles
    update_info: Any


class _Walk(NamedTuple):
    """A nested sampler whose new points walk, and stop at the contour."""

    init: Any
    step: Any


def _walk(
    logprior_fn: Any, loglikelihood_fn: Any, num_delete: int, batcher: Any
) -> _Walk:
    def points(x: Any, birth: Any) -> _Particles:
        densities = batcher(lambda x: (logprior_fn(x), loglikelihood_fn(x)))(x)
        return _Particles(x, densities[0], densities[1], birth)

    def init(positions: Any) -> _State:
        return _State(points(positions, jnp.full(len(positions), -jnp.inf)))

    def step(key: Any, state: _State) -> tuple[_State, _Info]:
        live = state.particles
        order = jnp.argsort(live.loglikelihood)
        gone, left = order[:num_delete], order[num_delete:]
        contour = live.loglikelihood[gone[-1]]
        key, choice = jax.random.split(key)
        begin = live.position[jax.random.choice(choice, left, (num_delete,))]

        def walk(key: Any, x: Any) -> Any:
            def turn(i: Any, x: Any) -> Any:
                y = x + jax.random.normal(jax.random.fold_in(key, i), x.shape)
                inside = logprior_fn(y) > -jnp.inf
                return jnp.where(inside & (loglikelihood_fn(y) > contour), y, x)

            return jax.lax.fori_loop(0, 5, turn, x)

        new = batcher(walk)(jax.random.split(key, num_delete), begin)
        born = points(new, jnp.full(num_delete, contour))
        after = jax.tree.map(lambda all, x: all.at[gone].set(x), live, born)
        dead = jax.tree.map(lambda x: x[gone], live)
        return _State(after), _Info(dead, None)

    return _Walk(init, step)


def _batcher(name: str) -> Any:
    known: dict[str, Callable[[], Any]] = {
        "Vmap": bk.Vmap,
        "Sharded": bk.Sharded,
        "Sharded, Chunked": lambda: bk.Sharded(inner=bk.Chunked(2)),
        "Sharded, Continuous": lambda: bk.Sharded(inner=bk.Continuous(2)),
        "Sharded, then Vmap": lambda: bk.ByPhase(init=bk.Sharded(), step=bk.Vmap()),
        "Vmap, then Sharded": lambda: bk.ByPhase(init=bk.Vmap(), step=bk.Sharded()),
    }
    return known[name]()


def _global(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _named(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(to_host(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
