"""The stand-in for `jax.vmap` in one rebuilt namespace.

It finds the site at which it is called, asks the policy for that site's batcher, and
lets the batcher run the call.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from inspect import CO_OPTIMIZED
from types import CodeType
from typing import Any, Final, final

import jax
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Site, Vmap
from ..batchers._call import Call, logged_call, mapped_function
from ..batchers._trace_log import current_entry
from ._policies import AbstractPolicy, chosen, may_want
from ._sites import site_of_call
from ._vmaps import Mapped, record


# Under this name a rebuilt namespace keeps its copier.
COPIER: Final = "__batchkit_copier__"


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

        # The signature of `jax.vmap`, so that arguments may come by position.
        def vmap(
            fun: Callable[..., Any],
            in_axes: Any = 0,
            out_axes: Any = 0,
            axis_name: Any = None,
            axis_size: int | None = None,
            spmd_axis_name: Any = None,
            sum_match: bool = False,
        ) -> Callable[..., Any]:
            arguments = {
                "in_axes": in_axes,
                "out_axes": out_axes,
                "axis_name": axis_name,
                "axis_size": axis_size,
                "spmd_axis_name": spmd_axis_name,
                "sum_match": sum_match,
            }
            return self.map(fun, arguments, self._calling_site())

        self.vmap = record(vmap, is_stand_in=True)

    def map(
        self, fun: Callable[..., Any], arguments: dict[str, Any], site: Site
    ) -> Callable[..., Any]:
        """Return what `jax.vmap` would, with its calls run by the site's batcher."""
        site = dataclasses.replace(site, phase=self._phase)
        batcher = chosen(self._policy, site)
        run = functools.partial(self._run, site, batcher)
        new = mapped_function(run, fun, **arguments, keep_data_movement=True)
        if batcher == Vmap() and not self._uses_outer_lanes:
            new = _unless_watched(new, jax.vmap(fun, **arguments))
        return record(new, mapped=Mapped(fun, arguments, site, self))

    def leaves(self, site: Site) -> bool:
        """Return whether the policy leaves a site as it is."""
        site = dataclasses.replace(site, phase=self._phase)
        return chosen(self._policy, site) == Vmap()

    def _calling_site(self) -> Site:
        """Return where the packages' code calls its vmap, perhaps through a wrapper."""
        frame = inspect.currentframe()
        while frame is not None and COPIER not in frame.f_globals:
            frame = frame.f_back
        if frame is None:
            return Site("", "", 0, "vmap")
        place = frame.f_code, frame.f_lineno
        if place not in self._sites:
            variables = frame.f_locals
            if frame.f_back is not None and not frame.f_code.co_flags & CO_OPTIMIZED:
                # Of the body of a class, which does not show its free variables.
                variables = {**frame.f_back.f_locals, **variables}
            self._sites[place] = site_of_call(
                frame.f_code, frame.f_globals, variables, frame.f_lineno
            )
        return self._sites[place]

    def _run(self, site: Site, batcher: AbstractBatcher, call: Call) -> PyTree:
        if current_entry() is None:
            return batcher.batch(call)
        return logged_call(
            call, site, batcher, batcher.batch, user_functions=self._users
        )


def _unless_watched(
    watched: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    """Return `plain` with one frame around it, and `watched` for a watched trace.

    JAX walks all frames for every equation that it traces, and `watched` adds five.
    """

    @functools.wraps(plain)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        return (plain if current_entry() is None else watched)(*args, **kwargs)

    return mapped
