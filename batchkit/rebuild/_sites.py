"""`sites`: every vmap that an API can reach, found without running it."""

from collections.abc import Iterator, Sequence
from typing import Any, final, overload

from .._util._formats import format_value
from ..batchers import Site
from ._finder import holds_code_of, reachable_by_phase
from ._ownership import packages_from
from ._table import html_table, table


@final
class Sites(Sequence[Site]):
    """The sites of an API: a sequence that prints as a table.

    ```python
    import blackjax
    import batchkit as bk

    found = bk.sites(blackjax.orbital_hmc)
    assert len(found) == 1
    assert found[0].spelling == "jax.vmap"
    print(found)
    ```
    """

    def __init__(self, sites: Sequence[Site] = ()) -> None:
        """**Arguments:**

        - `sites`: the records.
        """
        self._sites = tuple(sites)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> "Sites": ...
    def __getitem__(self, index: int | slice) -> "Site | Sites":
        if isinstance(index, slice):
            return Sites(self._sites[index])
        return self._sites[index]

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sites) and self._sites == other._sites

    def __hash__(self) -> int:
        return hash(self._sites)

    def __repr__(self) -> str:
        return table(_HEAD, self._rows()) if self._sites else "no sites"

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (x.module, x.qualname, str(x.line), x.spelling, x.phase or "")
            for x in self._sites
        ]


_HEAD = ("module", "qualname", "line", "spelling", "phase")


def sites(api: Any, *, packages: tuple[str, ...] | list[str] = ("blackjax",)) -> Sites:
    """Finds every vmap that an API can reach, by reading its code.

    Nothing is run, so the list is complete rather than exact: a site may lie in a
    branch that your settings never take. What one trace did reach is told by
    `batchkit.explain`.

    ```python
    import blackjax
    import batchkit as bk

    print(bk.sites(blackjax.nss))
    ```

    **Arguments:**

    - `api`: what `rebuild_sampler` takes: an API such as `blackjax.nss`, one of its
        functions, an algorithm's module, an algorithm already built or rebuilt.
    - `packages`: the packages whose code is read, by name.

    **Returns:**

    The sites, in the order of their modules and lines. A site that both `init` and
    `step` reach is listed for each of them. For an API that is not built yet, what its
    own factory hands to either has no phase; for the algorithm that it builds it has.

    **Raises:**

    `TypeError` for `packages` of the wrong type, `ValueError` if nothing in `api`
    belongs to them.
    """
    owners = packages_from("sites", packages)
    if not holds_code_of(api, owners):
        raise ValueError(
            f"sites(api={format_value(api)}): there is no function of the packages "
            f"{owners.names} in it. Pass an API such as `blackjax.nss`, or name your "
            "own package in `packages`; what a function of yours reaches is told by "
            "`explain`."
        )
    found = set(reachable_by_phase(api, owners))

    def place(site: Site) -> tuple[str, int, str, str]:
        return site.module, site.line, site.qualname, site.phase or ""

    return Sites(sorted(found, key=place))
