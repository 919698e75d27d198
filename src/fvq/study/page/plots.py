"""Plots inside the page: an SVG file's drawing in the page's colours, and the values that it shows under a pointer."""

import json
import re

from markupsafe import Markup

from fvq.study.drawings.drawing import Drawing
from fvq.study.drawings.style import INK, RULE

# Characters that would end a script element or start a comment in it.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def inline_svg(text: str, name: str) -> Markup:
    """An SVG file's drawing for use inside a page: no background, the page's colours, ids that no other drawing has."""
    text = text[text.index("<svg") :]
    text = re.sub(r' (?:width|height)="[^"]*pt"', "", text, count=2)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{name}-", text)
    text = text.replace("*{", ".plot *{")
    text = text.replace("fill: #ffffff", "fill: none").replace(INK, "currentColor").replace(RULE, "var(--rule)")
    # Everything in it was drawn and escaped by matplotlib.
    return Markup(text)


def points_json(drawing: Drawing) -> Markup:
    """The points as [x, y, text, colour] for a script element of data; x and y in the units of the SVG."""
    points = [[point.x, point.y, point.text, point.colour] for point in drawing.points]
    # Safe in a script element, whose text HTML does not unescape.
    return Markup(json.dumps(points, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES))
