"""A pandas table that is shown like every other table: without index, `60.0` or `<NA>`.

Imported only where a table is asked for, because pandas takes long to load.
"""

from typing import Any

import pandas as pd

from interp.display.tables import Table, table_html


class ShownFrame(pd.DataFrame):
    """A data frame whose notebook display is `table_html`; what is computed from it is an ordinary data frame."""

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        rows = [list(row) for row in self.itertuples(index=False, name=None)]
        style = "<style>.interp-table td,.interp-table th{text-align:left}.interp-table .num{text-align:right}</style>"
        return f'<div class="interp-table">{style}{table_html(Table(header=list(self.columns), rows=rows))}</div>'


def shown_frame(table: Table) -> ShownFrame:
    """The table as a data frame."""
    return ShownFrame(table.rows, columns=list(table.header))
