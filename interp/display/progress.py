"""Progress bars: in a notebook's cell, or on a terminal's standard error."""

import time
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any, TypeVar

from interp.display.errors import ipython_shell

T = TypeVar("T")


class NotebookBar:
    """A progress bar in a notebook cell that leaves nothing in the saved output.

    It first shows after `patience` seconds, so that quick work does not flicker.
    """

    def __init__(self, label: str, total: int, *, patience: float = 0.5, every: float = 0.2) -> None:
        self.label, self.total, self.done = label, total, 0
        self._begun = time.monotonic()
        self._next, self._every = self._begun + patience, every
        self._handle: Any = None

    def advance(self, size: int) -> None:
        """Count work as done; draws at most five times a second."""
        self.done += size
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + self._every
        seconds = now - self._begun
        left = seconds * (self.total / self.done - 1) if self.done else 0.0
        words = f"{self.label} {self.done}/{self.total}, {seconds:.0f} s, {left:.0f} s left"
        bar = f'<progress value="{self.done}" max="{self.total}" style="width:16em"></progress>'
        self._show({"text/plain": words, "text/html": f"{bar} {escape(words)}"})

    def close(self) -> None:
        """Remove the bar from the cell."""
        if self._handle is not None:
            self._show({"text/plain": "", "text/html": ""})

    def _show(self, bundle: dict[str, str]) -> None:
        from IPython.display import DisplayHandle

        if self._handle is None:
            self._handle = DisplayHandle()
            self._handle.display(bundle, raw=True)
        else:
            self._handle.update(bundle, raw=True)


def progress(
    items: Iterable[T], *, total: int, label: str, show: bool, size: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """Iterate over items with an optional progress bar and ETA, in a notebook's cell or on a terminal's standard error.

    Args:
        total: sum of the sizes of all items.
        size: size of an item, by which it advances the bar.
    """
    if not show:
        yield from items
        return
    if in_notebook():
        yield from _notebook_progress(items, NotebookBar(label, total), size)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            bar.advance(task, size(item))


def _notebook_progress(items: Iterable[T], bar: NotebookBar, size: Callable[[T], int]) -> Iterator[T]:
    try:
        for item in items:
            yield item
            bar.advance(size(item))
    finally:
        bar.close()


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    shell = ipython_shell()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
