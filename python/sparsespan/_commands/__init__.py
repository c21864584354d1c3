"""Sub-commands: each module has ``register(subparsers)`` and sets ``run`` to a function that returns the exit code."""
