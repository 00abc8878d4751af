"""A run as one self-contained HTML page with text, tables and Plotly figures, without external resources."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from interp.display.cards import Table, table_html

_STYLE = """
body{font:16px/1.5 Helvetica,Arial,sans-serif;color:#222;max-width:900px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:.9rem;margin:.8rem 0;display:block;overflow-x:auto}
th,td{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:left;vertical-align:top}
th{border-bottom:2px solid #444}td.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.note{background:#fff6e0;border-left:4px solid #E69F00;padding:.5rem .9rem;margin:.8rem 0}
pre{white-space:pre-wrap;font-size:.8rem;background:#f6f6f6;padding:.8rem}
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, paragraphs, then figures and tables."""

    title: str
    text: Sequence[str] = ()
    notes: Sequence[str] = field(default=())
    """Warnings shown prominently."""
    figures: Sequence[go.Figure] = ()
    tables: Sequence[Table] = ()


def html_report(title: str, lead: str, sections: Sequence[Section], provenance: Any) -> str:
    """Render the page, with Plotly's JavaScript included once.

    Args:
        provenance: a dataclass or mapping, shown in full at the end.
    """
    import json

    if is_dataclass(provenance) and not isinstance(provenance, type):
        provenance = asdict(provenance)

    body = [f"<h1>{escape(title)}</h1><p>{escape(lead)}</p>"]
    for section in sections:
        body.append(f"<h2>{escape(section.title)}</h2>")
        body += [f"<p>{escape(text)}</p>" for text in section.text]
        body += [f'<p class="note">{escape(text)}</p>' for text in section.notes]
        body += [table_html(table) for table in section.tables]
        body += [
            figure.to_html(
                full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
            )
            for figure in section.figures
        ]
    body.append(
        f"<h2>Provenance</h2><details><summary>model, prompts, versions, seconds</summary><pre>"
        f"{escape(json.dumps(provenance, indent=1, default=str))}</pre></details>"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>'
        f"<body>{''.join(body)}</body></html>"
    )
