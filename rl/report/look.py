"""The look of a page: its style, and the pieces of HTML that it is made of. No script, nothing from a network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1b1f24; --quiet: #5b6470; --line: #d8dce2; --mark: #f3f5f8;
  --good: #1a7f4b; --bad: #b3261e; --dream: #9a3fb0; --open: #8a6100; --none: #5b6470 }
@media screen and (prefers-color-scheme: dark) {
  :root { --back: #14171b; --ink: #e6e9ed; --quiet: #9aa3ad; --line: #333a42; --mark: #1e2329;
    --good: #4cc38a; --bad: #ff8a80; --dream: #d69be6; --open: #e5b84b; --none: #9aa3ad }
}
* { box-sizing: border-box }
body { background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: break-word }
h1 { font-size: 1.3rem; margin: 0 }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .6rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p { margin: .5rem 0; max-width: 46rem }
section { margin-top: 2.2rem; padding-top: 1rem; border-top: 1px solid var(--line) }
.quiet, .question { color: var(--quiet) }
.question { margin: 0; font-size: .95rem }
.verdict { border-left: .5rem solid var(--tone); background: var(--mark); padding: .8rem 1rem; margin: 1rem 0 }
.verdict p { margin: 0; font-size: 1.1rem; max-width: none }
.verdict .label { color: var(--tone); font-weight: 700; font-size: 1.6rem; line-height: 1.2; margin-bottom: .3rem }
.plots { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)) }
.plots > * { min-width: 0 }
@media (min-width: 60rem) { .plots.beside { grid-template-columns: 2fr 3fr; gap: 1rem 1.5rem } }
.plots.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)) }
figure { margin: .5rem 0 }
figcaption { font-weight: 600; font-size: .95rem }
svg { width: 100%; max-width: 36rem; height: auto; display: block }
.small svg { max-width: 24rem }
img { max-width: 100%; height: auto }
.film { max-width: 44rem }
.film div { display: flex }
.film span { flex: 1; font-size: .9rem }
.film img { width: 100% }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%; margin: .8rem 0; background:
  linear-gradient(var(--back), var(--back)) right / 1.2rem 100% no-repeat local,
  linear-gradient(to left, var(--quiet), transparent) right / .7rem 100% no-repeat scroll }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--back) }
th { font-weight: 600 }
pre { background: var(--mark); padding: .8rem; overflow-x: auto }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt }
  section, figure, .verdict { break-inside: avoid }
  h2 { break-after: avoid }
  .verdict { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  .scroll, pre { overflow: visible }
  th, td, pre { white-space: pre-wrap }
  table { font-size: 9pt }
}
"""


@dataclass(frozen=True)
class Section:
    """One question about a run, its answer as the title, and what shows it."""

    question: str
    answer: str
    body: str

    def to_html(self) -> str:
        """Return the section; question and answer are escaped, the body is HTML."""
        head = f"<p class=question>{text(self.question)}</p><h2>{text(self.answer)}</h2>"
        return f"<section>{head}{self.body}</section>"


def page(title: str, head: str, sections: Iterable[Section]) -> str:
    """Return a whole page; `head` is HTML."""
    body = "".join(section.to_html() for section in sections)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href="data:,">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>{head}{body}</body></html>\n"
    )


def verdict(label: str, sentence: str, tone: str) -> str:
    """Return a verdict as a box in the colour `tone`: good, bad, dream, open or none."""
    return (
        f'<div class=verdict style="--tone: var(--{text(tone)})"><p class=label>{text(label)}</p>'
        f"<p>{text(sentence)}</p></div>"
    )


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a table, which scrolls within itself where the page is narrower."""
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    rows = "".join("<tr>" + "".join(f"<td>{text(str(cell))}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<div class=scroll tabindex=0><table><tr>{top}</tr>{rows}</table></div>"


def figure(caption: str, drawing: str) -> str:
    """Return a drawing, which is HTML, with its caption; "" without a drawing."""
    title = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure>{title}{drawing}</figure>" if drawing else ""


def plots(*drawn: str, small: bool = False) -> str:
    """Return figures beside each other as far as the page is wide enough; "" without any."""
    inner = "".join(drawn)
    return f'<div class="plots{" small" if small else ""}">{inner}</div>' if inner else ""


def beside(drawing: str, words: str) -> str:
    """Return a figure with a table or text, side by side where the page is wide enough; `drawing` may be empty."""
    return f'<div class="plots beside">{drawing}<div>{words}</div></div>' if drawing else words


def note(words: str) -> str:
    """Return a paragraph in quiet colour."""
    return f"<p class=quiet>{text(words)}</p>"


def text(value: str) -> str:
    """Escape text for HTML."""
    return html.escape(value)
