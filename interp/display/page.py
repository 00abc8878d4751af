"""A run as one self-contained HTML page: contents, text, tables and Plotly figures, without external resources.

The page opens offline. Plotly's program is in it once, compressed (1.8 instead of 4.8 MB), and unpacked by the browser;
the figures' data are compressed beside it. Terms are explained below the paragraph in which they first stand.
"""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from interp.display.layout import without_heading
from interp.display.tables import Table, table_html

TERMS = {
    "t_inst": "the last token of the instruction",
    "t_post_inst": "the last token of the prompt, from which the answer is predicted; it belongs to the chat template",
    "AUROC": "the area under the ROC curve: the chance that one of the first kind scores above one of the second",
    "KL": "the Kullback-Leibler divergence between two distributions of the next token; 0 where they are equal",
    "refusal metric": "the log-odds of the refusal tokens as the answer's first; above 0 refusing is likelier",
    "bypass": "the refusal metric on harmful prompts with the direction ablated; lower is better",
    "induce": "the refusal metric on harmless prompts with the direction added; higher is better",
    "belief": "how much nearer a prompt lies to the centre of refused harmful prompts than to that of accepted "
    "harmless ones, as a difference of cosines; above 0 it counts as harmful, or as one to refuse",
    "stubs": "empty affirmative replies to harmful requests, such as 'Sure, here is how to do that.'",
    "borderline": "harmless prompts that sound harmful",
    "N+": "the number of positive examples, which teach the behaviour",
    "N-": "the number of negative examples, which teach the opposite",
    "gamma": "a compression rate: bits per byte, or nats per token, of a corpus under the model",
    "self-entropy": "the loss of a model on its own samples: the least that a student of them can reach",
    "soft prompt": "embeddings in the place of a system prompt's tokens, which need not be those of any word",
    "DRO": "directed representation optimisation: training a soft prompt that moves harmful queries towards refusing "
    "and harmless ones away from it",
    "prompt tuning": "training a soft prompt by the likelihood of answers",
    "refusal normal": "the direction across the boundary of the refusal regression, towards more refusal",
    "relaxed rule": "a selection rule with wider limits than the published one, used where no candidate meets that",
}
"""Terms of the field and of the papers, and what they mean."""

_STYLE = """
body{font:16px/1.5 Helvetica,Arial,sans-serif;color:#222;max-width:1280px;margin:2rem auto;padding:0 1rem}
p,ul,.note{max-width:46rem}h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.2rem}
nav{background:#f6f6f6;padding:.6rem 1rem;max-width:44rem}nav ul{margin:.3rem 0;padding-left:1.2rem}
table{border-collapse:collapse;font-size:.9rem;margin:.8rem 0;display:block;overflow-x:auto;max-width:100%}
th,td{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
td,th{min-width:3.5rem}th{border-bottom:2px solid #444}
.num{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal}
.note{background:#fff6e0;border-left:4px solid #E69F00;padding:.5rem .9rem;margin:.8rem 0}
.term{color:#555;font-size:.85rem;margin:.2rem 0 .2rem 1rem}
figure{margin:1.2rem 0;overflow-x:auto;max-width:100%}figcaption{max-width:46rem;margin-bottom:.3rem}
figcaption span{color:#555;font-size:.9rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem;background:#f6f6f6;padding:.8rem}
@media(max-width:600px){body{margin:1rem auto}h1{font-size:1.3rem}th,td{padding:.25rem .4rem}}
"""
# '<' is replaced, so that the text cannot end its element or begin a comment.
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~"
_LOADER = """
(async () => {
  const digits = new Map([...ALPHABET].map((letter, value) => [letter.charCodeAt(0), value]));
  const unpack = async (id) => {
    const node = document.getElementById(id), text = node.textContent, bytes = new Uint8Array(text.length / 5 * 4);
    for (let i = 0, out = 0; i < text.length; i += 5, out += 4) {
      let value = 0;
      for (let j = 0; j < 5; j++) value = value * 85 + digits.get(text.charCodeAt(i + j));
      bytes.set([value / 16777216 & 255, value / 65536 & 255, value / 256 & 255, value & 255], out);
    }
    const packed = new Blob([bytes.slice(0, Number(node.dataset.bytes))]).stream();
    return new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text();
  };
  try {
    const program = document.createElement("script");
    program.textContent = await unpack("plotly");
    document.head.append(program);
    const figures = JSON.parse(await unpack("figures"));
    for (const [id, figure] of Object.entries(figures))
      await Plotly.newPlot(id, figure.data, figure.layout, {displaylogo: false});
  } catch (error) {
    for (const node of document.querySelectorAll(".plotly-graph-div"))
      node.textContent = "This browser cannot draw the figures; they need one of 2023 or later. " + error;
  }
})();
""".replace("ALPHABET", json.dumps(_ALPHABET))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, paragraphs, then tables, figures and token strips."""

    title: str
    text: Sequence[str] = ()
    notes: Sequence[str] = field(default=())
    """Warnings shown prominently."""
    figures: Sequence[go.Figure] = ()
    tables: Sequence[Table] = ()
    strips: Sequence[tuple[str, str]] = ()
    """Captions and texts as HTML (`interp.display.token_strips`)."""


def html_report(
    title: str,
    lead: str,
    sections: Sequence[Section],
    provenance: Any,
    *,
    paper: str | None = None,
    next_steps: Sequence[tuple[str, str]] = (),
) -> str:
    """Render the page.

    Args:
        provenance: a dataclass or mapping, shown in full at the end.
        paper: arXiv id of the paper that is reproduced.
        next_steps: what a reader may do next, each with its command.
    """
    if is_dataclass(provenance) and not isinstance(provenance, type):
        provenance = asdict(provenance)
    shown = [*sections, *([Section(title="What to do next")] if next_steps else [])]
    drawn: dict[str, Any] = {}
    explained = set[str]()
    body = [f"<h1>{escape(title)}</h1>", *_paragraphs(lead, explained)]
    if paper is not None:
        address = f"https://arxiv.org/abs/{escape(paper, quote=True)}"
        body.append(f'<p>The paper: <a href="{address}">arXiv:{escape(paper)}</a></p>')
    body.append(_contents([section.title for section in shown]))
    for number, section in enumerate(shown, start=1):
        body.append(f'<h2 id="section-{number}">{escape(section.title)}</h2>')
        body += [part for text in section.text for part in _paragraphs(text, explained)]
        body += [f'<p class="note">{escape(text)}</p>' for text in section.notes]
        body += [table_html(table) for table in section.tables]
        body += [part for figure in section.figures for part in _figure(figure, drawn, explained)]
        body += [
            f"<figure><figcaption>{escape(caption)}</figcaption>{html}</figure>"
            for caption, html in section.strips
        ]
    body += [f"<p>{escape(what)}:</p><pre>{escape(command)}</pre>" for what, command in next_steps]
    body.append(
        f'<h2 id="provenance">Provenance</h2><details><summary>model, prompts, versions, seconds</summary><pre>'
        f"{escape(json.dumps(provenance, indent=1, default=str))}</pre></details>"
    )
    size, program = _plotly()
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>{"".join(body)}'
        f'<script type="text/plain" id="plotly" data-bytes="{size}">{program}</script>'
        f"{_packed_figures(drawn)}<script>{_LOADER}</script></body></html>"
    )


def with_section(page: str, section: Section) -> str:
    """A finished page with one more section of text and tables before its provenance."""
    name = re.sub(r"[^a-z0-9]+", "-", section.title.lower())
    body = [
        f'<h2 id="{name}">{escape(section.title)}</h2>',
        *(f"<p>{escape(text)}</p>" for text in section.text),
    ]
    body += [f'<p class="note">{escape(text)}</p>' for text in section.notes]
    for table in section.tables:
        body += [f"<p><b>{escape(table.title)}</b></p>", table_html(table)]
    link, place = '<li><a href="#provenance">', '<h2 id="provenance">'
    linked = page.replace(link, f'<li><a href="#{name}">{escape(section.title)}</a></li>{link}', 1)
    return linked.replace(place, "".join(body) + place, 1)


def _contents(titles: Sequence[str]) -> str:
    links = "".join(
        f'<li><a href="#section-{number}">{escape(title)}</a></li>'
        for number, title in enumerate(titles, start=1)
    )
    return f'<nav><b>Contents</b><ul>{links}<li><a href="#provenance">Provenance</a></li></ul></nav>'


def _paragraphs(text: str, explained: set[str]) -> list[str]:
    """A paragraph, and below it the terms that first stand in it."""
    return [f"<p>{escape(text)}</p>", *_terms(text, explained)]


def _terms(text: str, explained: set[str]) -> list[str]:
    parts = list[str]()
    for term, meaning in TERMS.items():
        if term not in explained and re.search(rf"(?<![\w+-]){re.escape(term)}s?(?![\w+-])", text):
            explained.add(term)
            parts.append(f'<p class="term"><b>{escape(term)}</b>: {escape(meaning)}.</p>')
    return parts


def _figure(figure: go.Figure, drawn: dict[str, Any], explained: set[str]) -> list[str]:
    """A figure's place with its number and caption; its data go into `drawn`."""
    number = len(drawn) + 1
    bare, title, note = without_heading(figure)
    drawn[f"figure-{number}"] = json.loads(str(bare.to_json()))
    caption = f"<b>Figure {number}.</b> {escape(title)}" + (
        f"<br><span>{escape(note)}</span>" if note else ""
    )
    words = json.dumps(drawn[f"figure-{number}"]["layout"].get("annotations", ""))
    return [
        *_terms(f"{title} {note} {words}", explained),
        f'<figure><figcaption>{caption}</figcaption><div class="plotly-graph-div" id="figure-{number}"></div></figure>',
    ]


@cache
def _plotly() -> tuple[int, str]:
    return _packed(get_plotlyjs())


def _packed_figures(drawn: dict[str, Any]) -> str:
    size, data = _packed(json.dumps(drawn))
    return f'<script type="text/plain" id="figures" data-bytes="{size}">{data}</script>'


def _packed(text: str) -> tuple[int, str]:
    """Bytes of the compressed text, and these as text in base 85."""
    data = gzip.compress(text.encode(), 9, mtime=0)
    return len(data), base64.b85encode(data, pad=True).decode().replace("<", ",")
