"""Tables, verdicts and page of a tracked series (`interp.tracking.report`)."""

from interp.tracking.report import rate_table, report, verdicts

__all__ = ["rate_table", "report", "verdicts"]
