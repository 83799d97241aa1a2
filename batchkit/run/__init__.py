"""Parts of every kind of run: checkpoints, names of parameters, results, warnings."""

from ._arguments import StartError as StartError
from ._checkpoint import Checkpoint as Checkpoint, CheckpointError as CheckpointError
from ._names import parameter_names as parameter_names
from ._packages import Provenance as Provenance, extra as extra
from ._result import Diagnostic as Diagnostic, Seconds as Seconds
from ._summary import Summary as Summary
