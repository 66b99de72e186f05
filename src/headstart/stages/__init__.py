"""One thin module a DVC stage: load params, read, one call, write. Nothing imports these."""

from headstart.quiet import quiet_libraries

# A stage is a process of its own, and this runs before its module's imports.
quiet_libraries()
