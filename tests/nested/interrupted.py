"""A run in a process of its own, which is killed, interrupted, and started again.

    python -m tests.nested.interrupted FOLDER OPTIONS

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

    import batchkit as bk

    from . import problems

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    say("start", time.time())
    slow = options.get("slow", 0.0)

    def tell(progress: Any) -> None:
        say("step", progress.step)
        time.sleep(slow)

    from batchkit.run import _resumable

    _resumable._BLOCK_SECONDS = options.get("block", 0.0)
    problem = problems.gaussian(options.get("dim", 2))
    batcher = getattr(bk, options.get("batcher", "Vmap"))(*options.get("arguments", []))
    run = problem.run(
        num_live=options.get("num_live", 100),
        num_delete=options.get("num_delete", 5),
        seed=options.get("seed", 0),
        batcher=batcher,
        num_inner_steps=options.get("num_inner_steps"),
        checkpoint=bk.Checkpoint(folder / "run.h5", every=options.get("every", 1e-3)),
        progress=tell,
        stop=bk.RemainingEvidence(options.get("fraction", 0.01)),
    )
    np.savez(
        folder / "written.npz",
        positions=run.dead.positions,
        loglikelihood=run.dead.loglikelihood,
        birth=run.dead.loglikelihood_birth,
        evidence=[run.log_evidence, run.log_evidence_err],
        counts=[run.num_steps, run.num_evaluations or 0],
    )
    os.replace(folder / "written.npz", folder / "found.npz")
    say("end")


def say(*words: Any) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
