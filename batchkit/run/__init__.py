"""Parts of every kind of run: checkpoints, names of parameters, results, warnings."""

from ._checkpoint import Checkpoint as Checkpoint, CheckpointError as CheckpointError
from ._diagnostic import Diagnostic as Diagnostic
from ._environment import Provenance as Provenance
from ._extras import extra as extra
from ._names import parameter_names as parameter_names
from ._start_error import StartError as StartError
from ._summary import Summary as Summary
