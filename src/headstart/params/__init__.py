"""params.yaml as typed values, one file per section: what is allowed, not what it is used for.

Modules import the sections that they read (`headstart.params.train`); stages depend on no others.
"""
