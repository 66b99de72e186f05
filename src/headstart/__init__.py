"""Transfer learning on image folders, as an experiment one can trust.

Rooms, in the order in which they may import each other (a later one imports earlier ones):
params, images, features, heads, models, tracking, serving, reports, stages, cli.
"""

__version__ = "0.1.0"
