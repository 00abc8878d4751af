"""Tables, verdicts and page of the tracked path (`interp.tracking.report`)."""

from interp.tracking.report import rate_table, report, verdicts

__all__ = ["rate_table", "report", "verdicts"]
