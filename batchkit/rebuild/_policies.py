"""Which batcher each site gets.

A policy chooses at every site that a trace reaches. `rebuild_sampler` takes a batcher,
which is the same for all sites, a policy, or a plain mapping.
"""

import abc
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, final

import equinox as eqx

from .._util._formats import format_type, format_value, table
from ..batchers import AbstractBatcher, Site, Vmap
from ..batchers._abstract import check_batcher
from ._sites import PHASES
from ._values import parts, walk


_BATCHER: Final = "a batcher such as `Chunked(16)`"


class AbstractPolicy(eqx.Module):
    """A rule that gives each site its batcher.

    Subclasses implement one method, `choose`. A policy must answer the same for the
    same site, because a sampler may be traced more than once.

    ```python
    import blackjax
    import equinox as eqx
    import batchkit as bk

    class ByModule(bk.AbstractPolicy):
        slow: bk.AbstractBatcher

        def choose(self, site: bk.Site) -> bk.AbstractBatcher:
            return self.slow if ".ns." in site.module else bk.Vmap()

    nss = bk.rebuild_sampler(blackjax.nss, batcher=ByModule(bk.Chunked(16)))
    ```
    """

    @abc.abstractmethod
    def choose(self, site: Site) -> AbstractBatcher:
        """Return the batcher for one site.

        **Arguments:**

        - `site`: where the vmap stands, and the phase that reaches it.

        **Returns:**

        A batcher. `Vmap()` leaves the site as it is.
        """


@final
class ByPhase(AbstractPolicy):
    """One batcher for an algorithm's `init` and another for its `step`.

    Functions named `init` belong to the first, those named `step` or `build_kernel` to
    the second, with everything that they call. All others (the `run` of an adaptation,
    a `sample`, a function that is rebuilt by itself) get `default`. `batchkit.explain`
    shows the phase of every site that was reached.

    ```python
    import blackjax
    import batchkit as bk

    policy = bk.ByPhase(init=bk.Chunked(64), step=bk.Chunked(16))
    nss = bk.rebuild_sampler(blackjax.nss, batcher=policy)
    ```
    """

    init: AbstractBatcher | AbstractPolicy
    step: AbstractBatcher | AbstractPolicy
    default: AbstractBatcher | AbstractPolicy

    def __init__(
        self,
        init: AbstractBatcher | AbstractPolicy | None = None,
        step: AbstractBatcher | AbstractPolicy | None = None,
        default: AbstractBatcher | AbstractPolicy | None = None,
    ) -> None:
        """**Arguments:**

        - `init`: the batcher, or policy, for `init`; `default` if left out.
        - `step`: the batcher, or policy, for `step`; `default` if left out.
        - `default`: the batcher, or policy, for everything else; `Vmap()` if left out.

        **Raises:**

        `TypeError` if one of them is neither.
        """
        self.default = Vmap() if default is None else default
        self.init = self.default if init is None else init
        self.step = self.default if step is None else step

    def __check_init__(self) -> None:
        for name in ("default", *PHASES):
            _check("ByPhase", name, getattr(self, name))

    def choose(self, site: Site) -> AbstractBatcher:
        phase = "default" if site.phase is None else site.phase
        return chosen(getattr(self, phase), site)


@final
class BySite(AbstractPolicy):
    """A batcher for each site, by its name or by a pattern.

    A site's name is `module:qualname`, as `batchkit.sites` lists it. A key is an exact
    name, with `:line` at its end if it should mean one vmap of several in a function,
    or a pattern with the wildcards of `fnmatch` (`"blackjax.ns.from_mcmc:*"`). An exact
    name comes before a pattern, and the first pattern that matches before the others.

    ```python
    import blackjax
    import batchkit as bk

    policy = bk.BySite({"blackjax.ns.from_mcmc:*": bk.Chunked(16)})
    nss = bk.rebuild_sampler(blackjax.nss, batcher=policy)
    ```
    """

    patterns: tuple[str, ...] = eqx.field(static=True)
    batchers: tuple[AbstractBatcher, ...]
    default: AbstractBatcher | AbstractPolicy

    def __init__(
        self,
        batchers: Mapping[str, AbstractBatcher],
        default: AbstractBatcher | AbstractPolicy | None = None,
    ) -> None:
        """**Arguments:**

        - `batchers`: batchers by name or pattern. `rebuild_sampler` refuses a key that
            matches no site.
        - `default`: the batcher, or policy, for every other site. `Vmap()` by default.

        **Raises:**

        `TypeError` if a key is no string or a value no batcher.
        """
        if not isinstance(batchers, Mapping):
            raise TypeError(
                f"BySite(batchers={batchers!r}): batchers must be a mapping from names "
                'or patterns to batchers, such as {"blackjax.ns.*": Chunked(16)}; got '
                f"{type(batchers).__name__}."
            )
        self.patterns = tuple(batchers)
        self.batchers = tuple(batchers.values())
        self.default = Vmap() if default is None else default

    def __check_init__(self) -> None:
        for pattern, batcher in zip(self.patterns, self.batchers, strict=True):
            if not isinstance(pattern, str):
                raise TypeError(
                    f"BySite(batchers={{{pattern!r}: ...}}): a key must be the name of "
                    "a site or a pattern, a string such as "
                    f'"blackjax.ns.from_mcmc:*"; got {type(pattern).__name__}.'
                )
            check_batcher("BySite", batcher, f"batchers[{pattern!r}]", rule=_BATCHER)
        _check("BySite", "default", self.default)

    def choose(self, site: Site) -> AbstractBatcher:
        pairs = zip(self.patterns, self.batchers, strict=True)
        found = {x: batcher for x, batcher in pairs if _matches(x, site)}
        for key in (str(site), site.name, *found):
            if key in found:
                return found[key]
        return chosen(self.default, site)


AnyPolicy = AbstractBatcher | AbstractPolicy


def policy_from(batcher: Any) -> AnyPolicy:
    """Return the batcher or policy that `batcher=` means; a mapping stands for both."""
    if isinstance(batcher, AnyPolicy):
        return batcher
    if not isinstance(batcher, Mapping):
        raise TypeError(
            f"rebuild_sampler(batcher={format_value(batcher)}): batcher must be a "
            "batcher such as `Chunked(16)`, a policy such as "
            "`ByPhase(step=Chunked(16))`, or a mapping such as "
            f'{{"step": Chunked(16)}}; got {format_type(batcher)}.'
        )
    if not batcher:
        raise ValueError(
            "rebuild_sampler(batcher={}): the mapping is empty. Give it phases, names "
            'or patterns of sites, such as {"step": Chunked(16)}, or pass `Vmap()`.'
        )
    names = (*PHASES, "default")
    phases = {name: batcher[name] for name in names if name in batcher}
    if None in phases.values():
        raise TypeError(
            f"rebuild_sampler(batcher={format_value(dict(batcher))}): a value must be "
            "a batcher such as `Chunked(16)`; leave a key out for its default; got "
            "None."
        )
    sites = {key: value for key, value in batcher.items() if key not in names}
    by_phase = ByPhase(**phases)
    return BySite(sites, default=by_phase) if sites else by_phase


def chosen(policy: AnyPolicy, site: Site) -> AbstractBatcher:
    """Return the batcher that a policy, or a batcher in its place, gives to a site."""
    if isinstance(policy, AbstractBatcher):
        return policy
    batcher = policy.choose(site)
    if not isinstance(batcher, AbstractBatcher):
        raise TypeError(
            f"{type(policy).__name__}.choose({site}) returned {format_value(batcher)}: "
            f"it must return a batcher, `Vmap()` to leave the site as it is; got "
            f"{format_type(batcher)}."
        )
    return batcher


def may_want(policy: object, flag: str) -> bool:
    """Return True if a class variable `flag` is true in a batcher of a policy."""
    found = [*_parts_of(policy)]
    kinds = {type(x) for x in found if isinstance(x, AbstractPolicy)}
    # A policy of a user's own may choose anything.
    is_open = bool(kinds - {ByPhase, BySite})
    return is_open or any(getattr(x, flag, False) for x in found)


def refuse_idle_patterns(
    policy: object, find_sites: Callable[[], Iterable[Site]]
) -> None:
    """Raise `ValueError` if a pattern somewhere in a policy matches no site."""
    policies = [x for x in _parts_of(policy) if isinstance(x, BySite)]
    patterns = [pattern for each in policies for pattern in each.patterns]
    sites = sorted(find_sites(), key=str) if patterns else []
    for pattern in patterns:
        if any(_matches(pattern, site) for site in sites):
            continue
        listed = table(("site", "vmap"), [(str(x), x.spelling) for x in sites])
        raise ValueError(
            f"rebuild_sampler(batcher=...): {pattern!r} matches no site of this API. "
            "Keys are names `module:qualname` of sites or patterns of them, or "
            f"{', '.join(PHASES)} or default in a plain mapping. If the site is in a "
            "function that the sampler takes as an argument, bind it before "
            "rebuilding: functools.partial(api, update_strategy=f). The sites of this "
            f"API:\n{listed if sites else '(none)'}"
        )


def _matches(pattern: str, site: Site) -> bool:
    exact = pattern in (str(site), site.name)
    return exact or fnmatch.fnmatchcase(site.name, pattern)


def _parts_of(policy: object) -> Iterator[Any]:
    """Yield a policy, and all policies and batchers inside it."""

    def inside(part: Any) -> list[Any]:
        return parts(part, lambda x: isinstance(x, AnyPolicy))

    return walk([policy], inside)


def _check(policy: str, name: str, value: object) -> None:
    rule = f"{_BATCHER} or a policy"
    check_batcher(policy, value, name, rule=rule, kinds=AnyPolicy)
