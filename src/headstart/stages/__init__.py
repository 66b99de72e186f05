"""One thin module a DVC stage: load params, read, one call, write. Nothing imports these."""

from headstart.common.interrupts import end_plainly_when_interrupted
from headstart.common.quiet import quiet_libraries

# A stage is a process of its own, and this runs before its module's imports.
end_plainly_when_interrupted()
quiet_libraries()
