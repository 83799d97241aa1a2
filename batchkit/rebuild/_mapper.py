"""Rebuilt namespaces, and the stand-in for `jax.vmap` in them.

The stand-in finds the site at which it is called, takes that site's batcher from the
policy, and runs the call with it.
"""

import dataclasses
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
from ._policies import AbstractPolicy, chosen, may_want
from ._sites import site_of_call
from ._vmaps import Mapped, record


# Names that the import system has put into a module and reads without a `__missing__`.
_MODULE_NAMES = ("__name__", "__package__", "__path__", "__file__", "__spec__")


@final
class Namespace(dict[str, Any]):
    """The global names of rebuilt functions.

    A name that the module did not have when a function was copied is looked up when
    the function reads it.
    """

    def __init__(
        self,
        source: dict[str, Any],
        builtins: dict[str, Any],
        look_up: Callable[[str], Any],
    ) -> None:
        super().__init__({x: source[x] for x in _MODULE_NAMES if x in source})
        self["__builtins__"] = builtins
        self.source = source
        self._look_up = look_up

    def __missing__(self, name: str) -> Any:
        if name not in self.source:  # a builtin, perhaps
            raise KeyError(name)
        return self.setdefault(name, self._look_up(name))


@final
class Mapper:
    """The `vmap` of rebuilt code, which maps functions with the policy's batchers."""

    def __init__(
        self,
        policy: AbstractBatcher | AbstractPolicy,
        phase: str | None,
        users: Mapping[CodeType, str],
    ) -> None:
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
        """Map `fun` as `jax.vmap` does, with calls run by the batcher of the site."""
        site = dataclasses.replace(site, phase=self._phase)
        batcher = chosen(self._policy, site)
        run = functools.partial(self._run, site, batcher)
        new: Any = mapped_function(run, fun, **arguments, in_sampler=True)
        if batcher == Vmap() and not self._uses_outer_lanes:
            logged, plain = new, jax.vmap(fun, **arguments)

            # JAX walks all frames for every equation that it traces. These are one in
            # place of six, unless the trace is logged.
            @functools.wraps(plain)
            def plain_or_logged(*args: Any, **kwargs: Any) -> Any:
                run = plain if current_entry() is None else logged
                return run(*args, **kwargs)

            new = plain_or_logged
        return record(new, mapped=Mapped(fun, arguments, site, self))

    def leaves(self, site: Site) -> bool:
        """Return True if the policy leaves a site as it is."""
        site = dataclasses.replace(site, phase=self._phase)
        return chosen(self._policy, site) == Vmap()

    def _calling_site(self) -> Site:
        """Return the site of the innermost rebuilt function that is running."""
        frame = inspect.currentframe()
        while frame is not None and not isinstance(frame.f_globals, Namespace):
            frame = frame.f_back
        if frame is None:
            return Site("", "", 0, "vmap")
        place = frame.f_code, frame.f_lineno
        if place not in self._sites:
            variables = frame.f_locals
            if (
                frame.f_back is not None
                and not frame.f_code.co_flags & inspect.CO_OPTIMIZED
            ):
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
