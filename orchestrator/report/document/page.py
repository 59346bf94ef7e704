"""The report's page: one HTML file that includes plotly's library and all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from orchestrator.report.document.blocks import Section, printed_table


def to_html(title: str, sections: Sequence[Section], images: Mapping[str, str]) -> str:
    """Return the page as HTML; `images` are the data URIs that pictures refer to by key."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"printed_table": printed_table}
    page = environment.get_template("page.html")
    # The template does not escape the script and the figures: neither contains "</script".
    script = get_plotlyjs().replace("</script", "<\\/script")
    return page.render(title=title, sections=sections, images=images, plotly=script)
