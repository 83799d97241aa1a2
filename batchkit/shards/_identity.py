"""What a run of shards is known by, so that only the same one goes on from its file."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ..chains._plan import (
    Plan,
    about as about_chains,
    identity_of as identity_of_chains,
    stand_in_for,
)
from ..run._fingerprint import of_arrays, of_function
from ._rounds import Rounds


def identity_of(rounds: Rounds, order: Int[np.ndarray, " rows"]) -> dict[str, str]:
    """What the run is known by, see `batchkit.run._saving`.

    **Arguments:**

    - `rounds`: what is run.
    - `order`: the order of rows in which shards are contiguous.
    """
    model, shards = rounds.model, rounds.shards
    one = jax.tree.map(lambda x: x[0, 0], rounds.starts)
    rows = jax.tree.map(lambda x: x[0], shards.rows([0]))
    value = jax.eval_shape(model.loglikelihood_fn, one, rows)
    stand_in = model.sampler(stand_in_for(value.dtype), rounds.target)
    assert stand_in.warm is not None
    _, tuned = jax.eval_shape(stand_in.warm, rounds.rng_key, one)
    unknown = dataclasses.replace(stand_in, logdensity_fn=None)
    plan = Plan(unknown, stand_in, _settings(rounds))
    return {
        "prior": of_function(model.logprior_fn, one),
        "likelihood": of_function(model.loglikelihood_fn, one, rows),
        "data": of_arrays(shards.data),
        "split into shards": of_arrays((order, np.int64(shards.count))),
        **identity_of_chains(plan, rounds.rng_key, rounds.flat_starts, tuned),
    }


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
