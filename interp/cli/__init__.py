"""The `interp` command: one file per command group, assembled in `main`.

Imports of torch and models happen inside the commands.
Never contains logic that a script would need: that belongs to the rooms above.
"""
