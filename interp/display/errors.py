"""Messages in IPython: a mistake in the user's input is one line, a note of the library is plain text."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

_PACKAGE = Path(__file__).parents[1]


def short_errors() -> None:
    """Show a user's mistake as one line in this IPython session; `%tb` prints the full traceback.

    Does nothing outside IPython, or where the user has installed a custom handler.
    """
    shell = ipython_shell()
    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((ValueError, OSError), _show_error)


def plain_notes() -> None:
    """Write the library's notes (log messages from WARNING on) to this IPython session's output.

    Notebooks show what goes to standard error as a red box, which is for errors. Does nothing outside IPython, or where
    the library's logger has a handler; where the user has set up logging, that alone writes.
    """
    log = logging.getLogger(_PACKAGE.name)
    if ipython_shell() is not None and not log.handlers:
        log.addHandler(_Notes(logging.WARNING))


class _Notes(logging.Handler):
    """Messages as lines of the current cell's output."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            sys.stdout.write(f"note: {self.format(record)}\n")


def is_users_mistake(error: BaseException) -> bool:
    """Whether interp itself raised this for a wrong input, that is, the innermost frame is in this library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_by_us = trace is not None and _PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents
    return isinstance(error, (ValueError, OSError)) and raised_by_us


def error_line(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _show_error(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> None:
    if not is_users_mistake(error):
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        return
    # IPython calls this method of an exception to render it; it is removed again, so that %tb shows everything.
    render: Callable[[], list[str]] = lambda: [f"\x1b[31m{error_line(error)}\x1b[0m"]  # noqa: E731
    error._render_traceback_ = render  # pyright: ignore[reportAttributeAccessIssue]
    try:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    finally:
        del error._render_traceback_  # pyright: ignore[reportAttributeAccessIssue]


def ipython_shell() -> Any:
    """The current IPython session; None outside IPython."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()
