"""Chains in a process of their own, which is killed, interrupted, and started again.

    python -m tests.chains.interrupted FOLDER OPTIONS

The lines that it prints tell how far it is. At its end it writes what it found.
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
    # Where tests run in the background, Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    import blackjax

    import batchkit as bk
    from batchkit.run import _resumable

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    say("start")
    slow = options.get("slow", 0.0)

    def tell(progress: Any) -> None:
        say("made", progress.warmed_up + progress.draws)
        time.sleep(slow)

    def logdensity(x: Any) -> Any:
        return -0.5 * jax.numpy.sum(x["x"] ** 2 * (1 + x["y"] ** 2)) - x["y"] ** 4

    # By default a block is as short as can be.
    _resumable._BLOCK_SECONDS = options.get("seconds", 0.0)
    batcher = getattr(bk, options.get("batcher", "Vmap"))(*options.get("arguments", []))
    key = jax.random.key(options.get("seed", 0))
    run = bk.run_chains(
        blackjax.hmc,
        logdensity,
        key,
        {"x": jax.random.normal(key, (5, 2)), "y": jax.numpy.zeros(5)},
        num_warmup=options.get("num_warmup", 60),
        num_samples=options.get("num_samples", 40),
        batcher=batcher,
        block=options.get("block"),
        num_integration_steps=3,
        checkpoint=bk.Checkpoint(folder / "run.h5", every=options.get("every", 1e-3)),
        progress=tell,
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
