"""Parts of a self-contained HTML page that prints well. Cells of tables and other texts are escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light; font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; background: #fff }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem }
table { border-collapse: collapse; margin: .4rem 0 } caption { text-align: left; color: #555 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ccc; text-align: right }
td + td { white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { font-weight: 600 }
.figures td { font-size: 1.05rem } .muted { color: #555 }
.mono td + td { font: .8rem/1.4 ui-monospace, monospace; white-space: normal; overflow-wrap: anywhere }
.warning { border-left: 4px solid #b26a00; padding: .2rem .8rem; background: #fff7e8 }
.cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem }
.cells figure { margin: 0; font-size: .8rem; overflow-wrap: anywhere; break-inside: avoid }
.cells img { display: block; width: 7rem; height: 7rem; object-fit: contain; background: #eee }
.sign { display: grid; grid-template-columns: 1fr 1fr; gap: 2.5rem 2rem; margin-top: 2.5rem }
.sign div { border-top: 1px solid #1b1b1b; padding-top: .2rem; color: #555 }
svg text { font: 12px system-ui, sans-serif; fill: #333 }
@page { margin: 18mm }
@media print {
  :root { font-size: 12px }
  body { margin: 0; max-width: none }
  h2 { break-after: avoid }
  table, svg, .sign { break-inside: avoid }
}
"""
SIGN = '<div class="sign"><div>Date, name</div><div>Signature</div></div>'

Row = Sequence[object]


def page(title: str, facts: Sequence[str], *parts: Iterable[str]) -> str:
    """Return the page. facts: shown below the title. parts: HTML."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = f'<h1>{escape(title)}</h1><p class="muted">{escape(" · ".join(facts))}</p>'
    content = "".join(text for part in parts for text in part)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}{content}</body></html>\n'


def warnings(texts: Sequence[str]) -> Iterable[str]:
    yield from (f'<p class="warning">{escape(text)}</p>' for text in texts)


def table(rows: Iterable[Row], head: Row = (), *, caption: str = "", kind: str = "") -> str:
    """Return a table. kind: its class in the style, such as `figures` or `mono`."""
    opening = f'<table class="{kind}">' if kind else "<table>"
    text = f"<caption>{escape(caption)}</caption>" if caption else ""
    if head:
        text += f"<thead><tr>{_cells('th', head)}</tr></thead>"
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"{opening}{text}<tbody>{body}</tbody></table>"


def bullets(items: Iterable[tuple[str, str]]) -> str:
    """Return a list of texts, each with its source, which may be empty."""
    lines = (
        f"<li>{escape(text)}" + (f' <span class="muted">{escape(source)}</span></li>' if source else "</li>")
        for text, source in items
    )
    return f"<ul>{''.join(lines)}</ul>"


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _cells(tag: str, texts: Row) -> str:
    return "".join(f"<{tag}>{escape(str(text))}</{tag}>" for text in texts)
