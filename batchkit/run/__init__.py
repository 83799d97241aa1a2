"""From a sampler's `init` and `step` to a result, and back to it after a kill."""

from ._checkpoint import Checkpoint as Checkpoint, CheckpointError as CheckpointError
