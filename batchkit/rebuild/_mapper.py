"""What stands in for `jax.vmap` in one rebuilt namespace.

It knows from where it is called, asks the policy for that site's batcher, and lets the
batcher run the call.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, final

import jax
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Site, Vmap
from ..batchers._call import Call, logged_call, mapped_function
from ..batchers._trace_log import current_entry
from ..batchers._traced_task import TracedTask
from ._data_movement import OnlyMovesDataError, only_moves_data
from ._finder import site_of_call
from ._marks import REBUILT
from ._policies import AbstractPolicy, chosen, may_want
from ._vmaps import Mapped, as_stand_in, remember_mapped


@final
class Mapper:
    """Maps functions on behalf of the packages' code, with the policy's batchers."""

    def __init__(
        self,
        policy: AbstractBatcher | AbstractPolicy,
        phase: str | None,
        users: Mapping[CodeType, str],
    ) -> None:
        """**Arguments:**

        - `policy`: what chooses the batcher of a site.
        - `phase`: the phase that the rebuilt namespace belongs to.
        - `users`: the user's functions that have been handed in, by their code.
        """
        self._policy = policy
        self._phase = phase
        self._users = users
        self._uses_outer_lanes = may_want(policy, "uses_outer_lanes")
        self._sites: dict[tuple[CodeType, int], Site] = {}

        def vmap(
            fun: Callable[..., Any],
            in_axes: Any = 0,
            out_axes: Any = 0,
            axis_name: Any = None,
            axis_size: int | None = None,
            spmd_axis_name: Any = None,
        ) -> Callable[..., Any]:
            return self.map(
                Mapped(
                    fun,
                    {
                        "in_axes": in_axes,
                        "out_axes": out_axes,
                        "axis_name": axis_name,
                        "axis_size": axis_size,
                        "spmd_axis_name": spmd_axis_name,
                    },
                    self._calling_site(),
                )
            )

        self.vmap = as_stand_in(vmap)

    def map(self, mapped: Mapped) -> Callable[..., Any]:
        """What `jax.vmap` would return, run by the batcher of the site."""
        assert mapped.site is not None
        site = self._in_phase(mapped.site)
        batcher = chosen(self._policy, site)
        new = mapped_function(
            functools.partial(self._run, site, batcher),
            mapped.fun,
            **mapped.arguments,
            on_task=_leave_data_movement,
        )
        if batcher == Vmap() and not self._uses_outer_lanes:
            new = _unless_watched(new, jax.vmap(mapped.fun, **mapped.arguments))
        remember_mapped(new, mapped, self)
        return new

    def leaves(self, site: Site) -> bool:
        """Whether the policy leaves a site as it is."""
        return chosen(self._policy, self._in_phase(site)) == Vmap()

    def _calling_site(self) -> Site:
        """Where the packages' code calls its vmap, perhaps through somebody else's."""
        frame = inspect.currentframe()
        while frame is not None and REBUILT not in frame.f_globals:
            frame = frame.f_back
        if frame is None:
            return Site("", "", 0, "vmap")
        place = frame.f_code, frame.f_lineno
        if place not in self._sites:
            self._sites[place] = site_of_call(
                frame.f_code, frame.f_globals, frame.f_locals, frame.f_lineno
            )
        return self._sites[place]

    def _in_phase(self, site: Site) -> Site:
        return Site(site.module, site.qualname, site.line, site.spelling, self._phase)

    def _run(self, site: Site, batcher: AbstractBatcher, call: Call) -> PyTree:
        run = functools.partial(_run_batcher, batcher)
        if current_entry() is None:
            return run(call)
        return logged_call(call, site, batcher, run, user_functions=self._users)


def _unless_watched(
    watched: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    """What is as upstream wrote it, with one frame of ours around it and not five.

    JAX walks all frames for every equation that it traces.
    """

    @functools.wraps(plain)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        return (plain if current_entry() is None else watched)(*args, **kwargs)

    return mapped


def _run_batcher(batcher: AbstractBatcher, call: Call) -> PyTree:
    try:
        return batcher.batch(call)
    except OnlyMovesDataError:
        reached = current_entry()
        if reached is not None:
            reached.note = "only moves data, kept as vmap"
        return Vmap().batch(call)


def _leave_data_movement(task: TracedTask) -> None:
    if only_moves_data(task.jaxpr):
        raise OnlyMovesDataError
