"""Strips of coloured tokens for a notebook cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True)
class StripToken:
    """One token of a strip."""

    text: str
    """The token as decoded by the tokenizer."""
    colour: str
    """Background colour in CSS, light enough for dark text."""
    hover: str
    """Text shown when the pointer is over the token."""
    marked: bool = False
    """Whether the token is framed."""


def strip_html(tokens: Sequence[StripToken]) -> str:
    """Render tokens side by side on their colours, with visible white space."""
    spans = []
    for token in tokens:
        text = escape(token.text.replace("\n", "↵").replace("\t", "⇥")) or "∅"
        frame = "outline:2px solid #222;outline-offset:-2px;" if token.marked else ""
        spans.append(
            f'<span class="interp-token" title="{escape(token.hover, quote=True)}" style="background:{token.colour};'
            f"color:#222;{frame}padding:.1em .15em;margin:1px;border-radius:3px;white-space:pre-wrap;"
            f'display:inline-block">{text}</span>'
        )
    return f'<div style="font-family:monospace;line-height:1.7">{"".join(spans)}</div>'
