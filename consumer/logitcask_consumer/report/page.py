"""The report as one HTML page that needs nothing else: the Markdown's text and tables, with the plots inside as SVG."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token

from logitcask_consumer.report import plots
from logitcask_consumer.report.series import COLOURS

_TEMPLATES: Final = Path(__file__).parent / "templates"
_COLOURS: Final = {
    plots.INK: "ink",
    plots.GRID: "grid",
    plots.TEACHER: "quiet",
    **{colour: f"series-{number}" for number, colour in enumerate(COLOURS, start=1)},
}
"""Colours of the plots -> the page's names for them, which have other values in the dark."""
_IDENTIFIER: Final = re.compile(r'(\bid="|url\(#|href="#)')
_METADATA: Final = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def to_page(markdown: str, drawn: Mapping[str, str]) -> str:
    """The page.

    Args:
        markdown: of `to_markdown`; what looks like HTML in it is text.
        drawn: file name of each plot that the Markdown shows -> the plot as SVG.
    """
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")

    # The plots are its only images: a name in a cask must not make a reader's browser ask anybody for anything.
    def own_image(_: RendererProtocol, tokens: Sequence[Token], at: int, *__: Any) -> str:
        title, source = escapeHtml(tokens[at].content), str(tokens[at].attrs["src"])
        return f'<img src="{source}" alt="{title}" />' if source in drawn else title

    renderer.add_render_rule("image", own_image)
    body = renderer.render(markdown)
    # Wide tables scroll by themselves, on a phone too; the keyboard reaches them.
    body = body.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    for number, (name, svg) in enumerate(drawn.items(), start=1):
        image = re.compile(rf'<p><img src="{re.escape(name)}" alt="([^"]*)" ?/></p>')
        before, title, after = image.split(body)
        body = f'{before}<figure role="img" aria-label="{title}">{_inline(svg, f"plot{number}-")}</figure>{after}'
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(body=body)


def _inline(svg: str, prefix: str) -> str:
    """An SVG document as an element of a page: with ids of its own, and in the page's colours and letters."""
    element = _METADATA.sub("", svg[svg.index("<svg") :])
    element = _IDENTIFIER.sub(rf"\g<1>{prefix}", element)
    for colour, name in _COLOURS.items():
        element = element.replace(colour, f"var(--{name})")
    # White patches behind labels.
    return element.replace("#ffffff", "var(--page)")
