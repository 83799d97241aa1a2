"""The command line: `python -m batchkit plan my_model:problem --device H100`."""

import argparse
import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .auto import BudgetError, plan
from .auto._lane_memory import budget_on
from .auto._layout_plan import check_measurable
from .devices import described_device
from .devices._target import check_device
from .explain._explain import format_batcher


_DESCRIPTION: Final = """\
Find batchers with which init and step of a sampler fit a budget of memory, on this
machine or on a device that is not here.

PROBLEM is MODULE:FUNCTION. The function takes no arguments and returns a dictionary
with those of batchkit.plan: "api", "positions" (jax.ShapeDtypeStruct may stand for an
array, unless layouts are measured) and the settings of the sampler.

The exit status is 1 if not even one task at a time fits, and 2 after any other error.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with the arguments of the process, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m batchkit")
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "plan",
        help="find batchers with which a sampler fits a budget of memory",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("problem", metavar="PROBLEM", help="such as my_model:problem")
    budget = 'bytes on the device, such as "70 GB"; by default half of them'
    command.add_argument("--budget", help=budget)
    place = command.add_mutually_exclusive_group()
    place.add_argument("--device", help="a device that is not here, such as H100")
    fastest = "run the layouts that fit, and take the fastest"
    place.add_argument("--measure", action="store_true", help=fastest)
    options = parser.parse_args(arguments)
    try:
        return _plan(options, command)
    except BudgetError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception:
        # Python's own status would be 1 for an error in the user's module, too.
        traceback.print_exc()
        return 2


def _plan(options: argparse.Namespace, command: argparse.ArgumentParser) -> int:
    """Plan the problem that the options name, and print what to write."""
    wanted = {"budget": None, **_problem(options.problem, command)}
    if options.budget is not None:
        text = options.budget
        wanted["budget"] = int(text) if text.isdecimal() else text
    if options.measure:
        wanted["measure"] = True
    try:
        if options.device is not None:
            wanted["device"] = described_device(options.device)
        check_device(f"{options.problem}()", wanted.get("device"), or_mesh=False)
        budget_on(wanted["budget"], wanted.get("device"), "--budget")
        if wanted.get("measure"):
            check_measurable(wanted.get("device"), wanted["positions"])
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        command.error(str(error))
    found = plan(**wanted)
    init, step = map(format_batcher, (found.init.batcher, found.step.batcher))
    print(f"{found}\n\nbatcher=bk.ByPhase(init=bk.{init}, step=bk.{step})")
    return 0


def _problem(text: str, command: argparse.ArgumentParser) -> dict[str, Any]:
    """Call the function that `MODULE:FUNCTION` names, and check what it returns."""
    name, _, function = text.partition(":")
    if not name or not function:
        command.error(f"{text!r} must be MODULE:FUNCTION, such as my_model:problem")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that the user's own imports
        here = ", ".join(sorted(x.stem for x in Path().glob("*.py"))) or "none"
        command.error(f"there is no module {name!r}; in this folder there are: {here}")
    make = getattr(module, function, None)
    if not callable(make):
        defined = [
            x
            for x, y in inspect.getmembers(module, inspect.isfunction)
            if y.__module__ == module.__name__
        ]
        command.error(
            f"{name!r} has no function {function!r}; it has: "
            f"{', '.join(defined) or 'none'}"
        )
    problem = make()
    if not isinstance(problem, Mapping) or not {"api", "positions"} <= problem.keys():
        has = list(problem) if isinstance(problem, Mapping) else type(problem).__name__
        command.error(
            f"{text} must return a dictionary with 'api' and 'positions'; got {has}"
        )
    return dict(problem)


if __name__ == "__main__":
    sys.exit(main())
