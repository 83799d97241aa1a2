"""A process of chains to be killed, interrupted, and started again.

    python -m tests.chains.interrupted FOLDER OPTIONS

It prints its progress, and writes its draws at the end.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path, options: dict[str, Any]) -> None:
    # A process in the background ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    import blackjax

    import batchkit as bk
    from batchkit.run import _resumable, _saving

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    say("start")
    slow = options.get("slow", 0.0)

    def show(progress: Any) -> None:
        say("made", progress.warmed_up + progress.draws)
        time.sleep(slow)

    def logdensity(x: Any) -> Any:
        return -0.5 * jax.numpy.sum(x["x"] ** 2 * (1 + x["y"] ** 2)) - x["y"] ** 4

    # By default a block is as short as can be. However long a save takes, the next one
    # is not put off: where a killed run resumes must not depend on the machine.
    _saving._RUN_PER_COST = 0
    _resumable._BLOCK_SECONDS = options.get("seconds", 0.0)
    key = jax.random.key(0)
    run = bk.run_chains(
        blackjax.hmc,
        logdensity,
        key,
        {"x": jax.random.normal(key, (5, 2)), "y": jax.numpy.zeros(5)},
        num_warmup=60,
        num_samples=40,
        num_integration_steps=3,
        checkpoint=bk.Checkpoint(folder / "run.h5", every=options.get("every", 1e-3)),
        progress=show,
    )
    np.savez(
        folder / "found.npz",
        x=run.samples["x"],
        y=run.samples["y"],
        acceptance=np.asarray(run.acceptance_rate),
        diverging=np.asarray(run.diverging),
        steps=np.asarray(run.num_integration_steps),
        step_size=np.asarray(run.step_size),
        mass=np.asarray(run.inverse_mass_matrix),
    )
    say("end")


def say(*words: Any) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
