"""The ``searchr3`` command: its parser and one module a command.

Nothing imports from here; it is the only part of the package that prints.
"""
