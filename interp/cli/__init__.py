"""The `interp` command.

Hands out `main.app`, one Typer application.
Never computes: every command calls what a notebook calls.
"""
