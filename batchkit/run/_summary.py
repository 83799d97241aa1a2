"""A posterior as a table of moments and quantiles: as text, in LaTeX and for pandas."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import numpy as np
from jaxtyping import Float, PyTree

from .._util._formats import format_type, format_value, html_table, table
from ._names import columns, named_numbers
from ._packages import extra


QUANTILES: Final = (0.05, 0.5, 0.95)
# Columns after the quantiles, with their formats.
_CONVERGENCE: Final = {"R-hat": ".3f", "bulk ESS": ",.0f", "tail ESS": ",.0f"}
# A printed table of more rows hides what is around it.
_ROWS: Final = 60
# Of float64, to which all numbers are converted.
_PRECISION: Final = 15
# Numbers from the first to the second are written without a power of ten.
_PLAIN: Final = (1e-4, 1e7)
_LATEX: Final = {
    **{x: f"\\{x}" for x in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


@final
class Summary:
    """The posterior of each parameter: mean, standard deviation and quantiles.

    Of chains and of shards, it also has R-hat and effective sample sizes. `values` has
    the numbers by the names of parameters and of columns. It prints as a table, each
    row rounded to two significant digits of its standard deviation, so that no digit is
    noise and none is missing.

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.run import Summary

    x = np.array([0.0, 1.0, 2.0])
    summary = Summary({"x": x}, weights=np.array([0.25, 0.5, 0.25]))
    assert summary["x"]["mean"] == summary["x"]["50 %"] == 1.0
    assert summary["x"]["std"] == 0.5**0.5

    draws = np.random.default_rng(0).normal(size=(4, 1000))
    summary = bk.ChainRun({"x": draws}).summary()
    assert abs(summary["x"]["mean"]) < 0.1
    assert summary["x"]["R-hat"] < 1.01
    print(summary)
    ```
    """

    values: Mapping[str, Mapping[str, float]]

    def __init__(
        self,
        positions: PyTree,
        weights: Float[np.ndarray, " n"] | None = None,
        quantiles: Sequence[float] = QUANTILES,
        convergence: Sequence[PyTree] = (),
    ) -> None:
        """**Arguments:**

        - `positions`: a pytree of arrays of shape `(n, ...)`, one row a point.
        - `weights`: the weight of each point, of shape `(n,)`; they sum to one. By
            default points are draws, and the deviation is the estimate from a sample.
        - `quantiles`: the ones to show, between 0 and 1; 0.05, 0.5 and 0.95 by default.
        - `convergence`: R-hat, bulk and tail effective sample sizes, each a pytree like
            one position; by default they are left out.

        **Raises:**

        `TypeError` or `ValueError` if `quantiles` are no such numbers.
        """
        labels = quantile_labels(quantiles)
        levels = list(labels.values())
        values: dict[str, dict[str, float]] = {}
        for name, column in columns(positions):
            x = column.astype(np.float64)
            if weights is None:
                mean, std = np.mean(x), np.std(x, ddof=x.size > 1)
                found = np.quantile(x, levels)
            else:
                mean = weights @ x
                std = np.sqrt(weights @ (x - mean) ** 2)
                # The only method of NumPy that takes weights.
                method = "inverted_cdf"
                found = np.quantile(x, levels, weights=weights, method=method)
            row = {"mean": float(mean), "std": float(std)}
            row.update(zip(labels, map(float, found), strict=True))
            values[name] = row
        for label, tree in zip(_CONVERGENCE, convergence, strict=False):
            for name, value in named_numbers(tree):
                values[name][label] = value
        self.values = values

    def __getitem__(self, name: str) -> Mapping[str, float]:
        return self.values[name]

    def __repr__(self) -> str:
        head, *rows = self._lines()
        return table(head, rows, _ROWS)

    def _repr_html_(self) -> str:
        head, *rows = self._lines()
        return html_table(head, rows)

    def to_dataframe(self) -> Any:
        """Return the table as a `pandas.DataFrame`, with numbers that are not rounded.

        It needs `pip install 'batchkit-jax[pandas]'`.

        **Returns:**

        A data frame with a row for each parameter, under its name.

        **Raises:**

        `ImportError` if pandas is not installed.
        """
        pandas = extra("pandas", "pandas", "Summary.to_dataframe")
        index = pandas.Index(list(self.values), name="parameter")
        return pandas.DataFrame(list(self.values.values()), index=index)

    def to_latex(self, labels: Mapping[str, str] | None = None) -> str:
        r"""Return the table as a `tabular` of LaTeX, which needs no package.

        **Arguments:**

        - `labels`: names of parameters in LaTeX, such as
            `{"omega": r"$\omega$"}`; names by default.

        **Raises:**

        `ValueError` if there is no parameter of the name of a label.
        """
        labels = dict(labels or {})
        for name in labels:
            if name not in self.values:
                raise ValueError(
                    f"to_latex(labels=...): there is no parameter {name!r}. There are "
                    f"{', '.join(self.values)}."
                )
        head, *rows = self._lines(_in_mathematics)
        head = [_in_latex(x).replace("R-hat", r"$\hat{R}$") for x in head]
        for row in rows:
            row[0] = labels.get(row[0], _in_latex(row[0]))
        first, *rest = (" & ".join(cells) + r" \\" for cells in (head, *rows))
        return "\n".join(
            [
                rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
                r"\hline",
                first,
                r"\hline",
                *rest,
                r"\hline",
                r"\end{tabular}",
            ]
        )

    def _lines(self, show: Callable[[str], str] = str) -> list[list[str]]:
        """Return the head and the rows; `show` rewrites moments and quantiles."""
        lines = [["parameter", *next(iter(self.values.values()), ())]]
        for name, row in self.values.items():
            more = [f"{row[x]:{form}}" for x, form in _CONVERGENCE.items() if x in row]
            cells = rounded(row, len(row) - len(more))
            lines.append([name, *map(show, cells), *more])
        return lines


def quantile_labels(quantiles: Any) -> dict[str, float]:
    """Return quantiles by the names of their columns, such as `"5 %"`."""
    begin = f"summary(quantiles={format_value(quantiles)}): quantiles must be"
    numbers = "numbers between 0 and 1, such as (0.05, 0.5, 0.95)"
    if isinstance(quantiles, str) or not isinstance(quantiles, Sequence | np.ndarray):
        raise TypeError(f"{begin} {numbers}; got {format_type(quantiles)}.")
    labels: dict[str, float] = {}
    for value in quantiles:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(
                f"{begin} {numbers}; one is {format_value(value)}, of type "
                f"{format_type(value)}."
            )
        if not 0 <= value <= 1:
            raise ValueError(f"{begin} between 0 and 1; one is {value}. 5 % is 0.05.")
        label = f"{100 * value:.10g} %"
        if label in labels:
            raise ValueError(f"{begin} all different; {value} occurs twice.")
        labels[label] = float(value)
    return labels


def rounded(row: Mapping[str, float], count: int) -> list[str]:
    """Return the first numbers of a row, to two digits of the deviation."""
    values, std = list(row.values())[:count], row["std"]
    if not (np.isfinite(std) and std > 0):
        return [f"{x:.10g}" for x in values]
    largest = max(abs(x) for x in values if np.isfinite(x))
    power = decimal_order(largest)
    # Rounded first: 0.0996 has its first digit where 0.1 has.
    places = 1 - decimal_order(float(f"{std:.1e}"))
    places = min(places, _PRECISION - 1 - power)
    if not _PLAIN[0] <= largest < _PLAIN[1]:
        scale, end = 10.0**power, f"e{power:+03d}"
        return [f"{_round(x / scale, places + power)}{end}" for x in values]
    return [_round(x, places) for x in values]


def _round(x: float, places: int) -> str:
    # Minus zero is zero.
    return f"{round(x, places) + 0.0 if np.isfinite(x) else x:.{max(places, 0)}f}"


def decimal_order(x: float) -> int:
    """Return the order of magnitude: the power of ten of the first digit."""
    return int(np.floor(np.log10(x)))


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(x, x) for x in text)


def _in_mathematics(cell: str) -> str:
    mantissa, _, power = cell.partition("e")
    times = rf" \times 10^{{{int(power)}}}" if power else ""
    return f"${mantissa}{times}$" if mantissa[-1].isdigit() else cell
