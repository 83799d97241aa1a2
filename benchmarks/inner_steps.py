"""How many inner steps a nested sampler needs, and which diagnostic sees too few.

Four problems in 10 dimensions whose evidence is known: a Gaussian with correlations of
0.95, a shell, a Gaussian bent five times (Haario, Saksman and Tamminen 1999), and the
log-gamma problem with four peaks (Beaujean and Caldwell 2013, arXiv:1304.7808). Each is
run from many seeds at each number of inner steps. Of every run come the deviation from
the exact evidence in units of the reported error, the p-value of the insertion ranks,
and what chains remember of their start.

All seeds are one program, `jax.vmap` over seeds, and the number of inner steps is an
operand of it: chains repeat blackjax's step by an update strategy of their own, which
keeps their start and end. Rows are written as they are made, and a file that is there
is gone on with.

    python benchmarks/inner_steps.py --seeds 50 --out inner_steps.json
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import batchkit as bk
from batchkit.nested import DeadPoints, chain_counts, insertion_p_value
from batchkit.nested._chain_counts import Recorded


DIM = 10


class Problem(NamedTuple):
    """A likelihood, half of the side of a box with a uniform prior, log-evidence."""

    loglikelihood: Callable[[Any], Any]
    half: float
    exact: float

    def logprior(self, x: Any) -> Any:
        inside = jnp.all(jnp.abs(x) < self.half)
        return jnp.where(inside, -DIM * math.log(2 * self.half), -jnp.inf)


def correlated() -> Problem:
    covariance = 0.95 * np.ones((DIM, DIM)) + 0.05 * np.eye(DIM)
    precision = np.linalg.inv(covariance)
    log_norm = -0.5 * float(np.linalg.slogdet(2 * math.pi * covariance)[1])
    return Problem(lambda x: log_norm - 0.5 * x @ precision @ x, 5, -DIM * math.log(10))


def shell(radius: float = 2.0, width: float = 0.1) -> Problem:
    """The radial integral, by quadrature."""
    r = np.linspace(1e-6, 6.0, 1_000_001)
    log_surface = math.log(2) + DIM / 2 * math.log(math.pi) - math.lgamma(DIM / 2)
    log_norm = -0.5 * math.log(2 * math.pi * width**2)
    terms = (DIM - 1) * np.log(r) + log_norm - 0.5 * ((r - radius) / width) ** 2
    log_integral = np.logaddexp.reduce(terms) + math.log(r[1] - r[0]) + log_surface

    def loglikelihood(x: Any) -> Any:
        return log_norm - 0.5 * ((jnp.sqrt(jnp.sum(x**2)) - radius) / width) ** 2

    return Problem(loglikelihood, 6, float(log_integral) - DIM * math.log(12))


def bent() -> Problem:
    """Five pairs `x ~ N(0, 1)`, `y ~ N(x^2 - 1, 0.3^2)`, whose Jacobian is one."""
    width = 0.3

    def loglikelihood(x: Any) -> Any:
        a, b = x[::2], x[1::2]
        return jnp.sum(norm.logpdf(a) + norm.logpdf(b, a**2 - 1, width))

    # The tails of y that the box cuts off: below 1e-3 of the mass of each pair.
    a = np.linspace(-10, 10, 200_001)
    density = np.exp(-0.5 * a**2) / math.sqrt(2 * math.pi)
    erf = np.vectorize(math.erf)
    inside = 0.5 * (1 + erf((10 - (a**2 - 1)) / (width * math.sqrt(2))))
    mass = float(np.sum(density * inside) * (a[1] - a[0]))
    return Problem(loglikelihood, 10, DIM / 2 * math.log(mass) - DIM * math.log(20))


def log_gamma() -> Problem:
    """Two peaks in each of the first two parameters, long tails in half of the rest."""

    def gamma(x: Any, loc: float) -> Any:
        return (x - loc) - jnp.exp(x - loc)

    def loglikelihood(x: Any) -> Any:
        first = jnp.logaddexp(gamma(x[0], 10.0), gamma(x[0], -10.0))
        second = jnp.logaddexp(norm.logpdf(x[1], 10.0), norm.logpdf(x[1], -10.0))
        rest = jnp.sum(gamma(x[2:6], 10.0)) + jnp.sum(norm.logpdf(x[6:], 10.0))
        return first + second - 2 * math.log(2) + rest

    return Problem(loglikelihood, 30, -DIM * math.log(60))


PROBLEMS = {
    "correlated": correlated,
    "shell": shell,
    "bent": bent,
    "log-gamma": log_gamma,
}


class Accepted(NamedTuple):
    """As much of the information of a kernel as is counted."""

    is_accepted: Any


def repeating(steps: Any) -> Callable[..., Any]:
    """An update strategy: chains of `steps` steps from survivors, the last one kept."""

    def strategy(step: Callable[..., Any], _: int, num_delete: int) -> Any:
        def update(rng_key: Any, state: Any, contour: Any, **params: Any) -> Any:
            choice_key, *keys = jax.random.split(rng_key, num_delete + 1)
            above = state.particles.loglikelihood > contour
            weights = above / jnp.sum(above)
            chosen = jax.random.choice(choice_key, len(above), (num_delete,), p=weights)
            start = jax.tree.map(lambda x: x[chosen], state.particles)

            def chain(key: Any, point: Any) -> Any:
                def move(i: Any, point: Any) -> Any:
                    turn = jax.random.fold_in(key, i)
                    return step(turn, point, loglikelihood_0=contour, **params)[0]

                return jax.lax.fori_loop(0, steps, move, point)

            end = jax.vmap(chain)(jnp.stack(keys), start)
            birth = jnp.full_like(end.loglikelihood_birth, contour)
            info = Recorded(
                Accepted(jnp.ones((num_delete, 1), bool)),
                start.position[:, None],
                end.position[:, None],
            )
            return end._replace(loglikelihood_birth=birth), info

        return update

    return strategy


def program(problem: Problem, seeds: int, num_live: int, num_delete: int) -> Any:
    """`init(keys)` and `block(keys, states, first step, inner steps)`, jitted."""

    def sampler(steps: Any) -> Any:
        api: Any = blackjax.nss
        return api(
            problem.logprior,
            problem.loglikelihood,
            num_inner_steps=1,
            num_delete=num_delete,
            update_strategy=repeating(steps),
        )

    def first(key: Any) -> Any:
        half = problem.half
        shape = num_live, DIM
        positions = jax.random.uniform(key, shape, minval=-half, maxval=half)
        return sampler(1).init(positions, key)

    def turn(key: Any, state: Any, number: Any, steps: Any) -> Any:
        """One step of one run, which leaves a run as it is that has ended."""
        goes_on = going(state)
        key = jax.random.fold_in(key, number)
        new, info = sampler(steps).step(key, state)
        counts = chain_counts(info.update_info, new.particles.position)
        new, counts = jax.tree.map(
            lambda x, y: jnp.where(goes_on, x, y),
            (new, counts),
            (state, jax.tree.map(jnp.zeros_like, counts)),
        )
        dead = info.particles.loglikelihood, info.particles.loglikelihood_birth
        return new, (dead, counts, goes_on)

    def block(keys: Any, states: Any, first_step: Any, steps: Any) -> Any:
        def one(states: Any, number: Any) -> Any:
            return jax.vmap(turn, (0, 0, None, None))(keys, states, number, steps)

        states, made = jax.lax.scan(one, states, first_step + jnp.arange(20))
        return states, made, jnp.any(jax.vmap(going)(states))

    return jax.jit(jax.vmap(first)), jax.jit(block)


def going(state: Any) -> Any:
    remaining = state.integrator.logZ_live - state.integrator.logZ
    return remaining > math.log(1e-3)


def runs(
    init: Any, block: Any, exact: float, steps: int, seeds: int
) -> list[dict[str, Any]]:
    """One record for each seed."""
    keys = jax.random.split(jax.random.key(steps), seeds)
    states = init(keys)
    parts: list[Any] = []
    goes_on = True
    while goes_on:
        states, made, goes_on = block(keys, states, 20 * len(parts), steps)
        parts.append(jax.tree.map(np.asarray, made))
    live = states.particles.loglikelihood, states.particles.loglikelihood_birth
    dead, counts, kept = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    counts = jax.tree.map(lambda x: np.sum(x, axis=0), counts)
    found = []
    for seed in range(seeds):
        logl, birth = (
            np.concatenate([x[kept[:, seed], seed].ravel(), y[seed]]).astype(float)
            for x, y in zip(dead, map(np.asarray, live), strict=True)
        )
        found.append(
            record(logl, birth, exact, seed)
            | {
                "distances": (counts.distances[seed] / counts.chains[seed]).tolist(),
                "correlations": (counts.products[seed] / counts.chains[seed]).tolist(),
            }
        )
    return found


def record(
    logl: np.ndarray, birth: np.ndarray, exact: float, seed: int
) -> dict[str, Any]:
    birth = np.where(np.isnan(birth), -np.inf, birth)
    kept = logl > birth
    logl, birth = logl[kept], birth[kept]
    dead = DeadPoints(logl, logl, birth, np.zeros(len(logl)))
    run = bk.NestedRun(dead, key=jax.random.key(seed))
    return {
        "deviation": run.log_evidence - exact,
        "error": run.log_evidence_err,
        "p": insertion_p_value(dead),
        "points": len(dead),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--live", type=int, default=200)
    parser.add_argument("--delete", type=int, default=20)
    parser.add_argument("--steps", default="1,2,3,5,10,20,30,50")
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--out", default="inner_steps.json")
    options = parser.parse_args()
    path = Path(options.out)
    table: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    shape = options.seeds, options.live, options.delete
    for name in options.problems.split(","):
        problem = PROBLEMS[name]()
        init, block = program(problem, *shape)
        for steps in map(int, options.steps.split(",")):
            entry = f"{name} {steps} {options.live} {options.delete}"
            if entry not in table:
                start = time.perf_counter()
                found = runs(init, block, problem.exact, steps, options.seeds)
                table[entry] = found
                path.write_text(json.dumps(table))
                print(f"{time.perf_counter() - start:.0f} s", end=" ", flush=True)
            print_row(entry, table[entry])


def print_row(entry: str, rows: list[dict[str, Any]]) -> None:
    z = np.array([row["deviation"] / row["error"] for row in rows])
    nats = np.array([row["deviation"] for row in rows])
    p = np.array([row["p"] for row in rows])
    correlations = np.array([row["correlations"] for row in rows])
    distances = np.array([row["distances"][-1] for row in rows])
    mean, worst = correlations.mean(axis=1), correlations.max(axis=1)
    print(
        f"{entry:24} z {z.mean():+6.2f} sd {z.std(ddof=1):5.2f} "
        f" nats {nats.mean():+5.2f}"
        f"  p<1e-3 {np.sum(p < 1e-3):2d}/{len(p)}  moved {distances.mean():.3f}"
        f"  correlation {mean.mean():.3f} (+-{mean.std():.3f})"
        f" worst {worst.mean():.3f} (+-{worst.std():.3f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
