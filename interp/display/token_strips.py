"""Tokens side by side on their colours, for a notebook cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True)
class StripToken:
    """One token of a strip."""

    text: str
    """As the tokenizer decodes it."""
    colour: str
    """Background, a CSS colour light enough for dark letters."""
    hover: str
    """What is said when the pointer rests on it."""
    marked: bool = False
    """Drawn with a frame."""


def strip_html(tokens: Sequence[StripToken]) -> str:
    """Tokens side by side on their colours, white space made visible."""
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
