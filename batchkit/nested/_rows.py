"""A nested run as a table."""

from typing import Any, Final

from ..run._environment import provenance_rows


HEAD: Final = ("nested run", "")


def rows_of(run: Any) -> list[tuple[str, str]]:
    """What a `NestedRun` prints."""
    evaluations = run.num_evaluations
    rows = [
        (
            "log-evidence",
            f"{run.log_evidence:.2f} +/- {run.log_evidence_err:.2f}",
        ),
        ("information", f"{run.information:.2f} nats"),
        ("effective size", f"{run.ess:,.0f} of {len(run.dead):,} points"),
        ("steps", f"{run.num_steps:,}"),
        ("likelihoods", "unknown" if evaluations is None else f"{evaluations:,}"),
        ("converged", f"{'yes' if run.converged else 'no'}: {run.stop_reason}"),
        ("seconds", "{:.1f} to compile, {:.1f} to run".format(*run.seconds)),
    ]
    rows += provenance_rows(run.provenance)
    return rows + [("warning", str(warning)) for warning in run.warnings]
