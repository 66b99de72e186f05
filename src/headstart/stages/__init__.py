"""One thin module per DVC stage: read params and files, make one call into a room, write.

Nothing imports these. Each has the same three names, and `python -m` runs it by `run_stage`:

- `Sections`, the sections of params.yaml that it reads, which dvc.yaml names as its params;
- `run`, the stage;
- `summary`, the line that it prints.
"""

from headstart.common.interrupts import end_plainly_when_interrupted
from headstart.common.quiet import quiet_libraries
from headstart.images.memory import keep_freed_memory

# A stage is a process of its own, and this runs before its module's imports.
end_plainly_when_interrupted()
quiet_libraries()
keep_freed_memory()
