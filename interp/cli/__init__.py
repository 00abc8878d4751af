"""The `interp` command: one file a command group, put together in `main`.

Imports of torch and models happen inside the commands.
Never holds logic that a script would want: that is in a room above.
"""
