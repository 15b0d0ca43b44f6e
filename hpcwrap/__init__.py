"""hpcwrap: containers for batch schedulers.

Four stages (submit, prolog, enter, epilog) and three rooms that never import each other
(schedulers, image, container); see docs/design for how they fit.
"""

__version__ = "0.1.0"
