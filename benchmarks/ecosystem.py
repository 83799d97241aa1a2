"""Programs that stand on other libraries, in every layout: what lanes save.

Each row is a task of another library, many times with different parameters. The
lock-step ratio is what `jax.vmap` makes over what tasks one by one would, counted in
the steps that each task reports: what lanes that never wait could gain at most. `made`
and `needed` are evaluations of `Continuous`, as its statistics count them. Times are
medians over rounds in which every layout runs once, as times faster than `jax.vmap`;
vmap against itself is the noise. The difference is the largest that any layout has to
`jax.vmap`.

It needs diffrax, optimistix, lineax and optax, and for their rows gymnax, mctx, numpyro
and jaxns; `--only` chooses rows.
"""

import argparse
import functools
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import optimistix
from _measure import interleaved, print_machine

import batchkit as bk


jax.config.update("jax_enable_x64", True)


# A function of the arguments of all tasks, made with a batcher in place of `jax.vmap`.
Program = Callable[[Callable[..., Any]], Callable[[Any], Any]]


@final
@dataclass(frozen=True)
class Row:
    """A program that returns the results of all tasks and the steps that each took.

    The steps have an axis of tasks, and may have one of loops that run one after
    another: under `jax.vmap` all tasks wait for each other at the end of each loop.
    Where tasks report only the sum over their loops, `count_turns` counts the steps
    that all tasks make together.
    """

    program: Program
    args: Any
    lanes: int = 8
    count_turns: Callable[[], int] | None = None

    @property
    def size(self) -> int:
        return jax.tree.leaves(self.args)[0].shape[0]


def mapped(task: Callable[..., Any]) -> Program:
    """Return the program that maps a task over its arguments."""
    return lambda batcher: batcher(task)


@final
class Counting(bk.AbstractBatcher):
    """`Continuous`, passing the statistics of each call to a function while tracing."""

    lanes: int = eqx.field(static=True)
    record: Callable[[Any], None] = eqx.field(static=True)

    uses_expensive_marks: ClassVar[bool] = True

    def batch(self, call: Any) -> Any:
        continuous = bk.Continuous(self.lanes)
        counted = continuous.with_stats(call.fun, call.in_axes, call.out_axes)
        out, stats = counted(*call.args, **call.kwargs)
        self.record(stats)
        return out


def with_stats(row: Row) -> Callable[[Any], Any]:
    """Return the program under `Continuous`, with the evaluations made and needed."""

    def run(args: Any) -> Any:
        calls: list[Any] = []
        out = row.program(Counting(row.lanes, calls.append))(args)
        return out, sum(x.made for x in calls), sum(x.needed for x in calls)

    return run


def spread(low: float, high: float, size: int) -> np.ndarray:
    """Numbers from low to high in geometric progression, shuffled."""
    return np.random.default_rng(0).permutation(np.geomspace(low, high, size))


# diffrax

# With them the numbers of steps differ by 20 times.
RATES = spread(0.5, 450.0, 64)


def field(t: Any, y: Any, rate: Any, sines: int = 2_000) -> Any:
    """A linear decay whose evaluation takes about 0.02 ms."""
    del t
    grid = np.linspace(0, 1, sines)
    return -rate * y + 1e-30 * jnp.sum(jnp.sin(grid * y[0]))


def solve(rate: Any, solver: Any = None, sines: int = 2_000, **options: Any) -> Any:
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(bk.expensive(functools.partial(field, sines=sines))),
        solver or diffrax.Tsit5(),
        t0=0.0,
        t1=2.0,
        dt0=0.01,
        y0=jnp.ones(3),
        args=rate,
        stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6),
        **options,
    )
    return solution.ys, solution.stats["num_steps"]


def tsit5() -> Row:
    return Row(mapped(solve), RATES)


def costly_field() -> Row:
    return Row(mapped(functools.partial(solve, sines=20_000)), RATES, lanes=4)


def kvaerno5() -> Row:
    stiff = functools.partial(solve, solver=diffrax.Kvaerno5())
    return Row(mapped(stiff), RATES)


def save_at() -> Row:
    saved = diffrax.SaveAt(ts=jnp.linspace(0.0, 2.0, 50))
    return Row(mapped(functools.partial(solve, saveat=saved)), RATES)


def event() -> Row:
    half = diffrax.Event(lambda t, y, args, **_: y[0] < 0.5)
    return Row(mapped(functools.partial(solve, event=half)), spread(0.01, 450.0, 64))


def no_throw() -> Row:
    return Row(mapped(functools.partial(solve, throw=False, max_steps=64)), RATES)


def adjoint() -> Row:
    def slope(rate: Any) -> Any:
        value = lambda rate: (solve(rate)[0].sum(), solve(rate)[1])
        return jax.grad(value, has_aux=True)(rate)

    return Row(mapped(slope), RATES)


def stochastic() -> Row:
    def task(end: Any, key: Any) -> Any:
        noise = diffrax.VirtualBrownianTree(0.0, 8.0, tol=1e-3, shape=(), key=key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, _: field(t, y[None], 1.0, 2_000)[0]),
            diffrax.ControlTerm(lambda t, y, _: 0.5, noise),
        )
        solution = diffrax.diffeqsolve(
            terms, diffrax.EulerHeun(), 0.0, end, dt0=0.01, y0=1.0
        )
        return solution.ys, solution.stats["num_steps"]

    keys = jax.random.split(jax.random.key(0), 64)
    return Row(mapped(lambda x: task(*x)), (spread(0.4, 8.0, 64), keys))


# optimistix, lineax, optax


def rosenbrock(x: Any, _: Any = None) -> Any:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def starts(size: int = 64) -> Any:
    return 2 * jax.random.normal(jax.random.key(0), (size, 6))


def bfgs() -> Row:
    def task(x: Any) -> Any:
        solver = optimistix.BFGS(1e-8, 1e-8)
        found = optimistix.minimise(rosenbrock, solver, x, max_steps=4000, throw=False)
        return found.value, found.stats["num_steps"]

    return Row(mapped(task), starts())


def levenberg_marquardt() -> Row:
    def residuals(p: Any, amplitude: Any) -> Any:
        t = np.linspace(0, 5, 2_000)
        data = amplitude * np.exp(-0.7 * t) * np.cos(3 * t)
        return p[0] * jnp.exp(-p[1] * t) * jnp.cos(p[2] * t) - data

    def task(args: Any) -> Any:
        p, amplitude = args
        solver = optimistix.LevenbergMarquardt(1e-8, 1e-8)
        found = optimistix.least_squares(
            residuals, solver, p, amplitude, max_steps=500, throw=False
        )
        return found.value, found.stats["num_steps"]

    p = jnp.abs(1 + 0.6 * jax.random.normal(jax.random.key(0), (64, 3)))
    return Row(mapped(task), (p, spread(0.1, 10.0, 64)))


def root_find() -> Row:
    def task(c: Any) -> Any:
        cubic = lambda y, c: y**3 + y - c + field(0.0, y[None], 0.0, 10_000)[0]
        found = optimistix.root_find(
            cubic, optimistix.Newton(1e-10, 1e-10), jnp.array(1.0), c, throw=False
        )
        return found.value, found.stats["num_steps"]

    return Row(mapped(task), spread(1e-2, 1e9, 64))


def conjugate_gradients() -> Row:
    def task(condition: Any) -> Any:
        diagonal = condition ** jnp.linspace(0, 1, 1_500)
        apply = lambda x: diagonal * x
        like = jax.eval_shape(lambda: diagonal)
        operator = lineax.FunctionLinearOperator(
            apply, like, lineax.positive_semidefinite_tag
        )
        solver = lineax.CG(1e-8, 1e-8, max_steps=2_000)
        ones = jnp.ones(1_500)
        found = lineax.linear_solve(operator, ones, solver, throw=False)
        return found.value, found.stats["num_steps"]

    return Row(mapped(task), spread(1.1, 1e4, 64))


def lbfgs() -> Row:
    def task(x: Any) -> Any:
        solver = optax.lbfgs()
        both = optax.value_and_grad_from_state(rosenbrock)

        def turn(carry: Any) -> Any:
            x, state, _, turns = carry
            value, slope = both(x, state=state)
            step, state = solver.update(
                slope, state, x, value=value, grad=slope, value_fn=rosenbrock
            )
            steepest = optax.tree.norm(slope, ord=jnp.inf)
            return optax.apply_updates(x, step), state, steepest, turns + 1

        goes_on = lambda carry: (carry[2] > 1e-8) & (carry[3] < 2_000)
        x, _, _, turns = jax.lax.while_loop(
            goes_on, turn, (x, solver.init(x), jnp.array(jnp.inf), 0)
        )
        return x, turns

    return Row(mapped(task), starts())


# Simulators and games


def gillespie() -> Row:
    """Birth and death of a population, to a fixed time: the number of events varies."""

    def task(args: Any) -> Any:
        rate, key = args

        def turn(carry: Any) -> Any:
            t, count, key, turns = carry
            key, wait, which = jax.random.split(key, 3)
            births, deaths = rate, 0.1 * count
            total = births + deaths
            t = t + jax.random.exponential(wait) / total
            is_birth = jax.random.uniform(which) * total < births
            return t, count + jnp.where(is_birth, 1, -1), key, turns + 1

        start = (0.0, jnp.array(10), key, 0)
        _, count, _, turns = jax.lax.while_loop(lambda c: c[0] < 10.0, turn, start)
        return count, turns

    keys = jax.random.split(jax.random.key(0), 256)
    return Row(mapped(task), (spread(0.5, 200.0, 256), keys), lanes=64)


def episodes() -> Row:
    """Episodes of CartPole with a random policy, each until it ends."""
    gymnax = importlib.import_module("gymnax")
    env, params = gymnax.make("CartPole-v1")

    def task(args: Any) -> Any:
        key, skill = args
        key, start = jax.random.split(key)
        seen, state = env.reset(start, params)

        def turn(carry: Any) -> Any:
            seen, state, key, total, _, turns = carry
            key, step, act = jax.random.split(key, 3)
            # A policy between chance and a good one.
            good = (seen[2] + 0.3 * seen[3] > 0).astype(int)
            chance = jax.random.bernoulli(act, 0.5).astype(int)
            action = jnp.where(jax.random.uniform(act) < skill, good, chance)
            seen, state, reward, done, _ = env.step_env(step, state, action, params)
            return seen, state, key, total + reward, done, turns + 1

        carry = (seen, state, key, jnp.zeros(()), jnp.array(False), 0)
        end = jax.lax.while_loop(lambda c: ~c[4], turn, carry)
        return end[3], end[5]

    keys = jax.random.split(jax.random.key(0), 256)
    return Row(mapped(task), (keys, np.linspace(0, 0.9, 256)), lanes=64)


def tree_search() -> Row:
    """Searches of mctx, each with a number of simulations of its own."""
    mctx = importlib.import_module("mctx")

    def task(args: Any) -> Any:
        key, depth = args
        logits = jax.random.normal(key, (1, 4))
        root = mctx.RootFnOutput(
            prior_logits=logits, value=jnp.zeros(1), embedding=jnp.zeros((1, 2))
        )

        def recurrent(_: Any, key: Any, action: Any, state: Any) -> Any:
            state = jnp.tanh(state + action[:, None] - 1.5)
            value = field(0.0, state[0], 0.0, 5_000)[:1] + state[:, 0]
            out = mctx.RecurrentFnOutput(
                reward=value,
                discount=jnp.full(1, 0.9),
                prior_logits=jax.random.normal(key, (1, 4)),
                value=value,
            )
            return out, state

        def turn(carry: Any) -> Any:
            i, total = carry
            policy = mctx.gumbel_muzero_policy(
                params=None,
                rng_key=jax.random.fold_in(key, i),
                root=root,
                recurrent_fn=recurrent,
                num_simulations=8,
                max_depth=4,
            )
            return i + 1, total + policy.action_weights[0]

        start = (jnp.zeros((), int), jnp.zeros(4))
        turns, total = jax.lax.while_loop(lambda c: c[0] < depth, turn, start)
        return total, turns

    keys = jax.random.split(jax.random.key(0), 32)
    return Row(mapped(task), (keys, spread(1, 40, 32).astype(int)))


# Samplers


def funnel(x: Any) -> Any:
    """The potential of Neal's funnel, whose evaluation takes about 0.02 ms."""
    scale = jnp.exp(x[0] / 2)
    rest = jnp.sum((x[1:] / scale) ** 2) / 2 + (len(x) - 1) * x[0] / 2
    return (x[0] / 3) ** 2 / 2 + rest + field(0.0, x[:1], 0.0)[0]


def numpyro_nuts() -> Row:
    """Chains of numpyro, mapped by its `chain_method`: the warm-up, then the draws."""
    infer = importlib.import_module("numpyro.infer")

    def program(batcher: Any) -> Any:
        def run(positions: Any) -> Any:
            mcmc = infer.MCMC(
                infer.NUTS(potential_fn=bk.expensive(funnel), max_tree_depth=7),
                num_warmup=10,
                num_samples=10,
                num_chains=len(positions),
                chain_method=batcher,
                progress_bar=False,
            )
            counted = {"extra_fields": ("num_steps",)}
            key = jax.random.key(0)
            mcmc.warmup(key, init_params=positions, collect_warmup=True, **counted)
            fields = [mcmc.get_extra_fields(group_by_chain=True)]
            mcmc.run(mcmc.post_warmup_state.rng_key, **counted)
            fields += [mcmc.get_extra_fields(group_by_chain=True)]
            # Each doubling of a trajectory is a loop of its own. But all except the
            # last of a chain have full length, so the longest trajectory shows how many
            # steps `jax.vmap` makes (1 % more, since chains that are done go on too).
            steps = jnp.concatenate([x["num_steps"] for x in fields], axis=1)
            return mcmc.get_samples(group_by_chain=True), steps

        return run

    return Row(program, jax.random.normal(jax.random.key(1), (64, 10)) / 2)


def jaxns_slices() -> Row:
    """Live points of jaxns replaced by slice sampling, with its own settings for 4-D.

    From 32 slices on, jaxns continues chains between likelihood calls by itself.
    """
    batching, constrained, models, priors, protocol, samples = (
        importlib.import_module(f"jaxns.{name}")
        for name in (
            "sampling.batching",
            "constrained_sampler",
            "model",
            "priors",
            "sampling.protocol",
            "samples",
        )
    )
    tfp = importlib.import_module("tensorflow_probability.substrates.jax")
    size, ndim, num_prior = 40, 4, 6_000

    @bk.expensive
    def loglikelihood(x: Any) -> Any:
        return -0.5 * jnp.sum((x / 0.1) ** 2) + field(0.0, x[:1], 0.0, 20_000)[0]

    def model_of(loglikelihood: Any) -> Any:
        def uniform() -> Any:
            ones = jnp.ones(ndim)
            x = priors.Prior(tfp.distributions.Uniform(-ones, ones), name="x").realise()
            return loglikelihood(x)

        return models.Model(uniform)

    model = model_of(loglikelihood)
    sampler = constrained.UniDimSliceSampler(num_slices=5 * ndim)
    # The best draws from the prior are live points above the likelihood of the next.
    key_prior, key_slices = jax.random.split(jax.random.PRNGKey(0))
    points = jax.vmap(model.sample_U)(jax.random.split(key_prior, num_prior))
    values = jax.lax.map(model.log_likelihood, points)
    best = jnp.argsort(-values)
    live = best[:size]
    request = protocol.ConstrainedSampleRequest(
        keys=jax.random.split(key_slices, size),
        valid=jnp.ones(size, bool),
        from_root=jnp.zeros(size, bool),
        log_L_constraints=jnp.full(size, values[best[size]]),
        seed_points=samples.SeedPoint(
            U0=jax.tree.map(lambda x: x[live], points), log_L0=values[live]
        ),
        sampler_data=None,
    )

    def program(batcher: Any, model: Any = model) -> Any:
        sample = batching.sample_complete_chains
        if isinstance(batcher, bk.AbstractBatcher):
            # The classes of the sampler and of the model hold vmaps of their own.
            packages = ("jaxns.sampling",)
            sample = bk.rebuild_sampler(sample, batcher, packages=packages)

        def run(request: Any) -> Any:
            found = sample(sampler, request, model=model)
            points = found.U_samples, found.log_likelihoods
            return points, found.num_likelihood_evaluations

        return run

    def count_turns() -> int:
        calls: list[Any] = []

        def zeros(x: Any) -> Any:
            calls.append(x)
            return np.zeros(x.shape[:-1])

        def counted(x: Any) -> Any:
            like = jax.ShapeDtypeStruct((), float)
            # The host is called once for all tasks of a `jax.vmap`.
            zero = jax.pure_callback(zeros, like, x, vmap_method="expand_dims")
            return loglikelihood(x) + zero

        counting = program(jax.vmap, model_of(counted))
        jax.block_until_ready(jax.jit(counting)(request))
        return len(calls)

    return Row(program, request, count_turns=count_turns)


ROWS: dict[str, Callable[[], Row]] = {
    "diffrax, Tsit5": tsit5,
    "diffrax, Tsit5, 0.2 ms": costly_field,
    "diffrax, Kvaerno5": kvaerno5,
    "diffrax, SaveAt(ts)": save_at,
    "diffrax, event": event,
    "diffrax, throw=False": no_throw,
    "diffrax, gradient": adjoint,
    "diffrax, EulerHeun, noise": stochastic,
    "optimistix, BFGS": bfgs,
    "optimistix, LevenbergMarquardt": levenberg_marquardt,
    "optimistix, Newton": root_find,
    "lineax, CG": conjugate_gradients,
    "optax, L-BFGS": lbfgs,
    "Gillespie": gillespie,
    "gymnax, CartPole": episodes,
    "mctx, Gumbel MuZero": tree_search,
    "numpyro, NUTS": numpyro_nuts,
    "jaxns, slice sampling": jaxns_slices,
}


def measure(name: str, row: Row, repeats: int) -> None:
    """Print one row of the table."""
    candidates: dict[str, Any] = {
        "vmap": row.program(jax.vmap),
        "Chunked": row.program(bk.Chunked(row.lanes)),
        "Sequential": row.program(bk.Sequential()),
        "Continuous": with_stats(row),
    }
    programs: dict[str, Any] = {}
    compile_s: dict[str, float] = {}
    for layout, fun in candidates.items():
        start = time.perf_counter()
        programs[layout] = jax.jit(fun).lower(row.args).compile()
        compile_s[layout] = time.perf_counter() - start
    outs = {x: jax.block_until_ready(run(row.args)) for x, run in programs.items()}
    outs["Continuous"], made, needed = outs["Continuous"]
    expected, steps = outs["vmap"]
    error = max(
        float(jnp.max(jnp.abs(a - e) / (1e-6 + jnp.abs(e))))
        for found, _ in outs.values()
        for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )
    runs = {x: functools.partial(program, row.args) for x, program in programs.items()}
    seconds = interleaved({**runs, "again": runs["vmap"]}, repeats)
    ratio = {
        x: statistics.median(
            a / b for a, b in zip(seconds["vmap"], seconds[x], strict=True)
        )
        for x in seconds
    }
    turns = row.count_turns() if row.count_turns else int(steps.max(0).sum())
    lock_step = row.size * turns / int(steps.sum())
    print(
        f"| {name} | {row.size} | {row.lanes} | {lock_step:.2f} "
        f"| {statistics.median(seconds['vmap']):.3f} | {ratio['again']:.2f} "
        f"| {ratio['Chunked']:.2f} | {ratio['Sequential']:.2f} "
        f"| {ratio['Continuous']:.2f} | {int(made)} | {int(needed)} "
        f"| {int(steps.sum())} | {compile_s['vmap']:.1f} "
        f"| {compile_s['Continuous']:.1f} | {error:.0e} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    options = parser.parse_args()
    print_machine()
    print(
        "| program | tasks | lanes | lock-step ratio | vmap, s | vmap again | Chunked "
        "| Sequential | Continuous | made | needed | steps | vmap compiles, s "
        "| Continuous compiles, s | largest relative difference |"
    )
    print("|" + "---|" * 15)
    for name, make in ROWS.items():
        if options.only in name:
            measure(name, make(), options.repeats)


if __name__ == "__main__":
    main()
