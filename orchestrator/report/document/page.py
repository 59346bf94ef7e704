"""The report's page: one HTML file with everything in it, plotly's library once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from orchestrator.report.document.blocks import Section, for_people


def to_html(title: str, sections: Sequence[Section], held: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        title: of the page.
        sections: in order.
        held: images that pictures name by key, as data URIs.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"for_people": for_people}
    page = environment.get_template("page.html")
    # Not escaped: they are ours, or JSON without "<".
    script = get_plotlyjs().replace("</script", "<\\/script")
    return page.render(title=title, sections=sections, held=held, plotly=script)
