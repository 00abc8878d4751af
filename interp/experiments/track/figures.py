"""The figures of a tracked series (`interp.tracking.figures`)."""

from interp.tracking.figures import figures

__all__ = ["figures"]
