"""What a run of shards is known by, so that only the same one goes on from its file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ..chains._chain_identity import (
    Plan,
    about as about_chains,
    identity_of as identity_of_chains,
    names_of,
    stand_in_for,
    values_of as values_of_chains,
)
from ..chains._sampler import Tuned
from ..run._fingerprint import Part, of_arrays, of_function, rounding_of_function
from ..run._same_run import Compare, Values
from ..run._store import Saved
from ._rounds import Rounds


def identity_of(rounds: Rounds, order: Int[np.ndarray, " rows"]) -> dict[str, Part]:
    """Fingerprint of the run, by parts; see `batchkit.run._same_run`.

    **Arguments:**

    - `rounds`: what is run.
    - `order`: the order of rows in which shards are contiguous.
    """
    model, shards = rounds.model, rounds.shards
    one = jax.tree.map(lambda x: x[0, 0], rounds.starts)
    rows = jax.tree.map(lambda x: x[0], shards.rows([0]))
    value = jax.eval_shape(model.loglikelihood_fn, one, rows)
    stand_in = model.sampler(stand_in_for(value.dtype), rounds.target)
    assert stand_in.warmup is not None
    tuned = Tuned(*jax.eval_shape(stand_in.warmup.init, one)[:2])
    unknown = dataclasses.replace(stand_in, logdensity_fn=None)
    names = names_of(model.api, model.settings)
    plan = Plan(unknown, stand_in, _settings(rounds), names)
    return {
        "prior": of_function(model.logprior_fn, one),
        "likelihood": of_function(model.loglikelihood_fn, one, rows),
        "data": of_arrays(shards.data),
        "split into shards": of_arrays((order, np.int64(shards.count))),
        **identity_of_chains(plan, rounds.rng_key, rounds.flat_starts, tuned),
    }


def values_of(rounds: Rounds) -> Compare:
    """Return the comparison of a checkpoint with shards; see `batchkit.run._same_run`.

    A checkpoint has the log-densities of shards where their chains are, in which the
    prior and the likelihood are one sum.
    """

    def values(saved: Saved, changed: Sequence[str]) -> list[Values]:
        which = saved.header["running"]
        _, chains = rounds.chains(saved.header["shards"], which)
        one = jax.tree.map(lambda x: x[0, 0], rounds.starts)
        rows = jax.tree.map(lambda x: x[0], rounds.shards.rows([0]))
        compare = values_of_chains(
            chains,
            rounds.flat_starts,
            ("prior", "likelihood"),
            lambda: rounding_of_function(rounds.model.loglikelihood_fn, one, rows),
        )
        return list(compare(saved, changed))

    return values


def start_of(rounds: Rounds, header: Mapping[str, Any]) -> int:
    """From which draw on a checkpoint goes on, counted through all tries."""
    tries = len(header["shards"][header["running"][0]])
    return tries * rounds.model.num_samples + header["at"]


def about(rounds: Rounds) -> dict[str, Any]:
    """What a file tells its readers of a run, besides the draws."""
    told = about_chains(_settings(rounds), rounds.flat_starts)
    return {**told, "arrays": "of shape (shards * chains, draws, ...)"}


def _settings(rounds: Rounds) -> dict[str, Any]:
    model = rounds.model
    return {
        "num_warmup": model.num_warmup,
        "num_samples": model.num_samples,
        "target_acceptance": rounds.target,
        **model.settings,
    }
