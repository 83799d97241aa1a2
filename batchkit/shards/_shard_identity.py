"""The identity of a run of shards: only the same run resumes from its checkpoint."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

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
from ..run._same_run import Values
from ..run._store import Saved
from ._rounds import tries_in
from ._row_split import take_rows
from ._shard_model import ShardedModel


def identity_of(model: ShardedModel) -> dict[str, Part]:
    """Return the fingerprint of the run, by parts; see `batchkit.run._same_run`."""
    position, rows = _examples(model)
    value = jax.eval_shape(model.loglikelihood_fn, position, rows)
    stand_in = model.sampler(stand_in_for(value.dtype), model.target)
    assert stand_in.warmup is not None
    tuned = Tuned(*jax.eval_shape(stand_in.warmup.init, position)[:2])
    # The log-density has parts of its own here: the prior, the likelihood, the data.
    sampler = dataclasses.replace(stand_in, logdensity_fn=None)
    names = names_of(model.api, model.settings)
    plan = Plan(sampler, stand_in, _settings(model), names)
    return {
        "prior": of_function(model.logprior_fn, position),
        "likelihood": of_function(model.loglikelihood_fn, position, rows),
        "data": of_arrays(model.data),
        "split into shards": of_arrays((model.order, np.int64(model.num_shards))),
        **identity_of_chains(plan, model.rng_key, model.flat_starts, tuned),
    }


def compare_values(
    model: ShardedModel, saved: Saved, changed: Sequence[str]
) -> list[Values]:
    """Compare a checkpoint of other versions; see `batchkit.run._same_run`.

    It has the log-densities of shards where their chains are, in which the prior and
    the likelihood are one sum.
    """
    tries = tries_in(saved.header, model.num_shards)
    compare = values_of_chains(
        model.chains(saved.header["running"], tries),
        model.flat_starts,
        ("prior", "likelihood"),
        lambda: rounding_of_function(model.loglikelihood_fn, *_examples(model)),
    )
    return list(compare(saved, changed))


def about(model: ShardedModel) -> dict[str, Any]:
    """Return the description of the run that a checkpoint has for its readers."""
    described = about_chains(_settings(model), model.flat_starts)
    return {**described, "arrays": "of shape (shards * chains, draws, ...)"}


def _examples(model: ShardedModel) -> tuple[Any, Any]:
    """Return one position, and the rows of the largest shard."""
    position = jax.tree.map(lambda x: x[0, 0], model.starts)
    return position, take_rows(model.data, model.order[: model.size(0)])


def _settings(model: ShardedModel) -> dict[str, Any]:
    return {
        "num_warmup": model.plan.num_warmup,
        "num_samples": model.plan.num_samples,
        "target_acceptance": model.target,
        **model.settings,
    }
