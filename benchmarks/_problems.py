"""Twenty problems that are many independent tasks, for which `Auto` has to choose.

Twelve are samplers and likelihoods. Eight are other people's programs, as they write
them: nothing is marked as expensive, and only diffrax is needed. Each is named in
`PROBLEMS` and returns a program, which is a function of a batcher, and its arguments.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import jax.scipy.optimize
import numpy as np
from continuous import (
    chain_of,
    eight_schools,
    funnel,
    large_program,
    likelihood,
    nested_step,
    regression,
)
from speed import lens, matrix_chain

import batchkit as bk


# A function of all tasks, made with a batcher, and its arguments.
Problem = tuple[Callable[[bk.AbstractBatcher], Callable[..., Any]], tuple[Any, ...]]


def spread(low: float, high: float, size: int) -> np.ndarray:
    """Numbers from low to high in geometric progression, shuffled."""
    return np.random.default_rng(0).permutation(np.geomspace(low, high, size))


def keys_of(size: int) -> Any:
    return jax.random.split(jax.random.key(0), size)


# Samplers and likelihoods


@functools.cache
def nested_state(num_delete: int) -> Any:
    """A state of `nss` past the first steps, where nearly every point is accepted."""
    positions = jax.random.uniform(
        jax.random.key(0), (2 * num_delete, 5), minval=-1.0, maxval=1.0
    )
    step = jax.jit(nested_step(bk.Vmap(), num_delete, likelihood(1)))
    init: Any = blackjax.nss(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1.0), 0.0, -jnp.inf),
        loglikelihood_fn=likelihood(1),
        num_inner_steps=3,
        num_delete=num_delete,
    ).init
    state = jax.jit(init)(positions)
    for i in range(4):
        state, _ = step(jax.random.key(i), state)
    return state


def nested(loglikelihood: Callable[[Any], Any], num_delete: int = 50) -> Problem:
    """One step of nested slice sampling."""
    return (
        lambda batcher: nested_step(batcher, num_delete, loglikelihood),
        (jax.random.key(1), nested_state(num_delete)),
    )


def chains(logdensity: Any, step_size: float, starts: Any) -> Problem:
    """Ten transitions of NUTS in each chain."""
    chain = chain_of(bk.expensive(logdensity), step_size)
    return lambda batcher: batcher(chain), (keys_of(len(starts)), starts)


def normal(size: int) -> Any:
    return jax.random.normal(jax.random.key(1), (size, 10))


def mapped(task: Callable[..., Any], *args: Any) -> Problem:
    """A task for each row of the arguments."""
    return lambda batcher: batcher(task), args


def positions(size: int) -> Any:
    return jax.random.uniform(jax.random.key(0), (size, 2))


# Other people's programs


def particle_filter() -> Problem:
    """A bootstrap filter with one parameter in each task, which seldom resamples."""
    observed = jax.random.normal(jax.random.key(2), (40,))

    def task(key: Any, theta: Any) -> Any:
        def step(carry: Any, y: Any) -> Any:
            x, key = carry
            key, move, draw = jax.random.split(key, 3)
            x = theta * x + jax.random.normal(move, x.shape)
            weights = -0.5 * (y - x) ** 2
            total = jax.nn.logsumexp(weights)
            size = jnp.exp(2.0 * total - jax.nn.logsumexp(2.0 * weights))

            def resample() -> Any:
                return x[jax.random.categorical(draw, weights, shape=x.shape)]

            return (jax.lax.cond(size < 20.0, resample, lambda: x), key), total

        return jax.lax.scan(step, (jnp.zeros(400), key), observed)[1].sum()

    return mapped(task, keys_of(16), np.linspace(0.1, 0.99, 16))


def adaptive_solves() -> Problem:
    """The Van der Pol oscillator, from relaxed to stiff, by diffrax."""
    diffrax = importlib.import_module("diffrax")

    def field(t: Any, y: Any, damping: Any) -> Any:
        del t
        return jnp.stack([y[1], damping * (1.0 - y[0] ** 2) * y[1] - y[0]])

    def task(damping: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=0.0,
            t1=10.0,
            dt0=0.01,
            y0=jnp.array([2.0, 0.0]),
            args=damping,
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-7),
        ).ys

    return mapped(task, spread(0.1, 50.0, 64))


def event_detection() -> Problem:
    """The time at which a ball with drag lands: Runge-Kutta steps, then bisection."""

    def step(state: Any, h: Any, drag: Any) -> Any:
        def field(state: Any) -> Any:
            speed = jnp.hypot(state[2], state[3])
            pull = jnp.array([0.0, 9.81])
            return jnp.concatenate([state[2:], -drag * speed * state[2:] - pull])

        a = field(state)
        b = field(state + 0.5 * h * a)
        c = field(state + 0.5 * h * b)
        d = field(state + h * c)
        return state + h * (a + 2.0 * b + 2.0 * c + d) / 6.0

    def task(speed: Any, drag: Any) -> Any:
        h = 0.01
        start = jnp.array([0.0, 1e-3, 1.0, 1.0]) * speed

        def turn(carry: Any) -> Any:
            _, state, time = carry
            return state, step(state, h, drag), time + h

        above = lambda carry: carry[1][1] > 0.0
        last, _, time = jax.lax.while_loop(above, turn, (start, start, -h))

        def halve(_: Any, bounds: Any) -> Any:
            low, high = bounds
            middle = 0.5 * (low + high)
            is_above = step(last, middle, drag)[1] > 0.0
            return jnp.where(is_above, middle, low), jnp.where(is_above, high, middle)

        return time + jax.lax.fori_loop(0, 40, halve, (0.0, h))[0]

    return mapped(task, spread(1.0, 60.0, 256), np.linspace(0.0, 0.1, 256))


def episodes() -> Problem:
    """Episodes of CartPole (Barto, Sutton and Anderson 1983), each until it ends."""

    def task(key: Any, skill: Any) -> Any:
        key, start = jax.random.split(key)

        def turn(carry: Any) -> Any:
            (x, dx, angle, turning), key, steps = carry
            key, choose, guess = jax.random.split(key, 3)
            good = angle + 0.3 * turning > 0.0
            chance = jax.random.bernoulli(guess)
            is_right = jnp.where(jax.random.uniform(choose) < skill, good, chance)
            force = jnp.where(is_right, 10.0, -10.0)
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            push = (force + 0.05 * turning**2 * sin) / 1.1
            swing = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
            pull = push - 0.05 * swing * cos / 1.1
            new = jnp.stack([dx, pull, turning, swing]) * 0.02
            return jnp.stack([x, dx, angle, turning]) + new, key, steps + 1

        def goes_on(carry: Any) -> Any:
            (x, _, angle, _), _, steps = carry
            return (jnp.abs(x) < 2.4) & (jnp.abs(angle) < 0.21) & (steps < 500)

        state = jax.random.uniform(start, (4,), minval=-0.05, maxval=0.05)
        return jax.lax.while_loop(goes_on, turn, (state, key, 0))[2]

    return mapped(task, keys_of(256), np.linspace(0.0, 0.9, 256))


def rejection_sampler() -> Problem:
    """Draws of a mean given data, by simulating data until they are alike."""

    def task(key: Any, observed: Any) -> Any:
        def turn(carry: Any) -> Any:
            key, *_ = carry
            key, prior, noise = jax.random.split(key, 3)
            mean = 2.0 * jax.random.normal(prior)
            data = mean + jax.random.normal(noise, (200,))
            return key, mean, jnp.abs(jnp.mean(data) - observed)

        differs = lambda carry: carry[2] > 0.05
        return jax.lax.while_loop(differs, turn, (key, 0.0, jnp.inf))[1]

    return mapped(task, keys_of(128), np.linspace(-2.0, 2.0, 128))


def bfgs_starts() -> Problem:
    """The minimum of Rosenbrock's function, from many starts."""

    def rosenbrock(x: Any) -> Any:
        return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)

    def task(x: Any) -> Any:
        return jax.scipy.optimize.minimize(rosenbrock, x, method="BFGS").fun

    return mapped(task, 0.5 * normal(64)[:, :6])


def gillespie() -> Problem:
    """Birth and death of a population, to a fixed time (Gillespie 1977)."""

    def task(key: Any, rate: Any) -> Any:
        def turn(carry: Any) -> Any:
            time, count, key = carry
            key, wait, which = jax.random.split(key, 3)
            total = rate + 0.1 * count
            time = time + jax.random.exponential(wait) / total
            is_birth = jax.random.uniform(which) * total < rate
            return time, count + jnp.where(is_birth, 1, -1), key

        lasts = lambda carry: carry[0] < 10.0
        return jax.lax.while_loop(lasts, turn, (0.0, jnp.array(10), key))[1]

    return mapped(task, keys_of(256), spread(0.5, 200.0, 256))


def mlp_ensemble() -> Problem:
    """Small networks, each trained from a start of its own."""
    x = jax.random.normal(jax.random.key(3), (128, 8))
    y = jnp.sin(x.sum(1))

    def loss(weights: Any) -> Any:
        first, second, last = weights
        hidden = jnp.tanh(jnp.tanh(x @ first) @ second)
        return jnp.mean((hidden @ last - y) ** 2)

    def task(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        shapes = ((8, 32), (32, 32), (32,))
        weights = [
            jax.random.normal(each, shape) / np.sqrt(shape[0])
            for each, shape in zip(keys, shapes, strict=True)
        ]

        def step(weights: Any, _: Any) -> Any:
            value, slope = jax.value_and_grad(loss)(weights)
            return jax.tree.map(lambda w, g: w - 0.05 * g, weights, slope), value

        return jax.lax.scan(step, weights, length=50)[1]

    return mapped(task, keys_of(32))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "nss, 1 sine": lambda: nested(likelihood(1)),
    "nss, 300 sines": lambda: nested(likelihood(300)),
    "nss, 1,000 sines": lambda: nested(likelihood(1_000)),
    "nss, 3,000 sines": lambda: nested(likelihood(3_000)),
    "nss, 10,000 sines": lambda: nested(likelihood(10_000)),
    "nss, 100,000 sines": lambda: nested(likelihood(100_000)),
    "NUTS, eight schools": lambda: chains(eight_schools, 0.3, normal(256)),
    "NUTS, funnel": lambda: chains(funnel, 0.1, normal(256)),
    "NUTS, regression": lambda: chains(regression(), 0.02, 1.0 + 0.02 * normal(64)),
    "dense algebra": lambda: mapped(matrix_chain, positions(150)),
    "lens": lambda: mapped(lens, positions(150)),
    "large program": lambda: mapped(large_program, jnp.ones((64, 5))),
    "particle filter": particle_filter,
    "adaptive solves": adaptive_solves,
    "event detection": event_detection,
    "CartPole episodes": episodes,
    "rejection sampler": rejection_sampler,
    "BFGS starts": bfgs_starts,
    "Gillespie simulator": gillespie,
    "MLP ensemble": mlp_ensemble,
}
