"""The ``searchr3`` command: one module a command, and ``main``, which puts them together.

A new command is a module beside the others with ``SUMMARY``, ``EPILOG``, ``add_arguments`` and ``run``, and a line in
``main.COMMANDS``. The commands may use everything of the package, and nothing of the package uses them; this is the
only part that prints. What loads torch is imported inside functions, so that ``searchr3 --help`` answers at once.
"""
