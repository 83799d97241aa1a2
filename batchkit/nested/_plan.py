"""What is about to be run: in words, before it compiles, and as a fingerprint."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, final

import jax
import jax.extend as jex
from jaxtyping import PyTree

from ..batchers._bytes import in_words
from ..reports._reached import ReachedSite, records_of
from ..reports._watch import watching
from ..run._fingerprint import of_arrays, of_function, of_words
from ..run._names import parameter_names
from ..run._processes import check_same, several, speaker
from ._guard import settings_of
from ._programs import NestedPrograms


_log: Final = logging.getLogger("batchkit")


@final
class Layout:
    """How the sites of a run are laid out; filled when the traces are made."""

    def __init__(self) -> None:
        self.sites: tuple[ReachedSite, ...] = ()

    @property
    def words(self) -> list[str]:
        """Each site, its number of tasks and its batcher, in words."""
        return [
            f"{x.site.module}:{x.site.qualname} {x.tasks} tasks, "
            f"{x.batcher or 'jax.vmap'}, {x.layout}"
            for x in self.sites
            if "only moves data" not in x.note
        ]


@contextlib.contextmanager
def layout_of() -> Iterator[Layout]:
    """Yields the layout of what is traced in the body, known at its end."""
    layout = Layout()
    with watching() as root:
        yield layout
    layout.sites = records_of(root)


def say_what_is_run(
    algorithm: Any,
    functions: Mapping[str, Callable[..., Any]],
    positions: PyTree,
    programs: NestedPrograms,
    layout: Layout,
) -> dict[str, Any]:
    """Logs it in one line, and returns the settings of the algorithm."""
    settings = settings_of(algorithm)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(positions)}
    told = ", ".join(f"{name}={value}" for name, value in settings.items())
    speaker(_log).info(
        "run_nested: %d live points of %d numbers (%s), %d replaced in a step; %s; "
        "%s; %s",
        programs.num_live,
        len(parameter_names(positions)),
        ", ".join(sorted(dtypes)),
        programs.num_delete,
        told or "no settings known",
        "; ".join(layout.words),
        _expected(functions, positions, layout),
    )
    return settings


def check_processes(
    functions: Mapping[str, Callable[..., Any]],
    rng_key: Any,
    positions: PyTree,
    **options: Any,
) -> None:
    """Raises in all processes unless they were asked for the same run."""
    if several():
        digests = {
            "key": of_arrays(rng_key),
            "first live points": of_arrays(positions),
            **_digests(functions, positions),
        }
        check_same("run_nested", digests, **options)


def identity_of(
    functions: Mapping[str, Callable[..., Any]],
    programs: NestedPrograms,
    settings: Mapping[str, Any],
    rng_key: Any,
    positions: PyTree,
) -> dict[str, str]:
    """What the run is known by, see `batchkit.run._saving`."""
    known = _digests(functions, positions)
    if "likelihood" not in known:
        # Of an algorithm that shows no likelihood the whole step tells, layout and all.
        known["algorithm"] = programs.digest()
    return {
        **known,
        "settings": of_words(dict(settings), programs.num_live, programs.num_delete),
        "first live points": of_arrays(positions),
        "key": of_arrays(rng_key),
    }


def _digests(
    functions: Mapping[str, Callable[..., Any]], positions: PyTree
) -> dict[str, str]:
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), positions)
    words = {"logprior_fn": "prior", "loglikelihood_fn": "likelihood"}
    return {
        words[name]: of_function(function, row) for name, function in functions.items()
    }


def _expected(
    functions: Mapping[str, Callable[..., Any]], positions: PyTree, layout: Layout
) -> str:
    """The largest array that one likelihood makes, times those at the same time."""
    if "loglikelihood_fn" not in functions:
        return "bytes unknown"
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), positions)
    largest = _largest(jax.make_jaxpr(functions["loglikelihood_fn"])(row).jaxpr)
    at_once = max((_most_at_once(x) for x in layout.sites if x.functions), default=1)
    return (
        f"at least {in_words(largest * at_once)} expected: {at_once} likelihoods at "
        f"once, each with an array of {in_words(largest)}"
    )


def _most_at_once(site: ReachedSite) -> int:
    return max([site.at_once, *(_most_at_once(x) for x in site.inside if x.functions)])


def _largest(jaxpr: Any) -> int:
    """The bytes of the largest array that a jaxpr computes."""
    largest = 0
    for eqn in jaxpr.eqns:
        for out in eqn.outvars:
            size = getattr(out.aval, "size", 0)
            width = getattr(getattr(out.aval, "dtype", None), "itemsize", 0)
            largest = max(largest, int(size) * int(width))
        for inner in _jaxprs(eqn.params):
            largest = max(largest, _largest(inner))
    return largest


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in jax.tree.leaves(
        list(params.values()),
        is_leaf=lambda x: isinstance(x, jex.core.ClosedJaxpr | jex.core.Jaxpr),
    ):
        if isinstance(value, jex.core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, jex.core.Jaxpr):
            yield value
