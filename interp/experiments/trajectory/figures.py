"""The figures of the tracked path (`interp.tracking.figures`)."""

from interp.tracking.figures import figures

__all__ = ["figures"]
