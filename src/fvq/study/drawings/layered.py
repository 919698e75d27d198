"""Places for the nodes of a directed graph without cycles: columns from left to right, few crossings, no overlaps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from fvq.runtime.errors import UserError

# Height of the lane on which edges pass a column, and space between neighbours within a column.
_LANE = 8.0
_SPACE = 18.0
_SWEEPS = 12

Edge = tuple[str, str]
# A node in its own column, or the lane of its outgoing edges in a later one: all edges of a node share one lane.
_Item = tuple[str, int]


@dataclass(frozen=True)
class Placement:
    """``columns`` and the height of the ``centres`` by node, 0 at the top; each edge's ``lanes`` as (column, height).

    ``height`` and ``width`` are those of the whole, the width in columns.
    """

    columns: Mapping[str, int]
    centres: Mapping[str, float]
    lanes: Mapping[Edge, tuple[tuple[int, float], ...]]
    width: int
    height: float


def place(heights: Mapping[str, float], edges: Iterable[Edge], wrap: int) -> Placement:
    """Place nodes of these ``heights`` so that every edge leads to a later column: that of the longest path to it.

    The order within a column follows the barycentres of the neighbouring columns (Sugiyama, Tagawa and Toda, "Methods
    for Visual Understanding of Hierarchical System Structures", 1981). Nodes without edges stand below, in rows of
    ``wrap``.

    Raises:
        UserError: the edges form a circle.
    """
    edges = list(dict.fromkeys(edges))
    connected = [name for name in heights if any(name in edge for edge in edges)]
    columns = _columns(connected, edges)
    routes = {edge: _route(edge, columns) for edge in edges}
    segments = list(dict.fromkeys(pair for route in routes.values() for pair in pairwise(route)))
    layers = _order(_layers(connected, columns, routes.values()), segments)
    sizes = {item: heights[item[0]] if columns[item[0]] == item[1] else _LANE for layer in layers for item in layer}
    middle = _centres(layers, segments, sizes)
    centres = {name: middle[name, columns[name]] for name in connected}
    height = max((middle[item] + sizes[item] / 2 for item in middle), default=0.0)

    alone = [name for name in heights if name not in columns]
    for start in range(0, len(alone), wrap):
        row = alone[start : start + wrap]
        top = height + (_SPACE if height else 0)
        height = top + max(heights[name] for name in row)
        for column, name in enumerate(row):
            columns[name] = column
            centres[name] = top + heights[name] / 2
    return Placement(
        columns=columns,
        centres=centres,
        lanes={edge: tuple((item[1], middle[item]) for item in route[1:-1]) for edge, route in routes.items()},
        width=max(columns.values(), default=-1) + 1,
        height=height,
    )


def _columns(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The number of edges on the longest path to each node."""
    columns = dict.fromkeys(names, 0)
    for _ in names:  # no path has more edges than that
        for maker, reader in edges:
            columns[reader] = max(columns[reader], columns[maker] + 1)
    for maker, reader in edges:
        if columns[maker] >= columns[reader]:
            raise UserError(f"records: stages read each other's files, near {maker} and {reader}; run these again")
    return columns


def _route(edge: Edge, columns: Mapping[str, int]) -> list[_Item]:
    maker, reader = edge
    return [*((maker, column) for column in range(columns[maker], columns[reader])), (reader, columns[reader])]


def _layers(names: Sequence[str], columns: Mapping[str, int], routes: Iterable[Sequence[_Item]]) -> list[list[_Item]]:
    """The items of every column, nodes first."""
    items = dict.fromkeys([*((name, columns[name]) for name in names), *(item for route in routes for item in route)])
    return [[item for item in items if item[1] == column] for column in range(max(columns.values(), default=-1) + 1)]


def _order(layers: list[list[_Item]], segments: Sequence[tuple[_Item, _Item]]) -> list[list[_Item]]:
    """The order of the fewest crossings among those that sweeps of barycentres from left and from right come by."""
    best, fewest = layers, _crossings(layers, segments)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        layers = list(layers)
        for column in range(1, len(layers)) if forward else reversed(range(len(layers) - 1)):
            fixed = {item: place for place, item in enumerate(layers[column - 1 if forward else column + 1])}
            neighbours = _neighbours(segments, fixed)
            # Those without a neighbour there keep about their place.
            keys = {
                item: fmean(fixed[other] for other in neighbours[item]) if item in neighbours else float(place)
                for place, item in enumerate(layers[column])
            }
            layers[column] = sorted(layers[column], key=keys.__getitem__)
        if (crossings := _crossings(layers, segments)) < fewest:
            best, fewest = layers, crossings
    return best


def _neighbours(segments: Sequence[tuple[_Item, _Item]], among: Iterable[_Item]) -> dict[_Item, list[_Item]]:
    """What each item is joined to ``among`` the given ones."""
    wanted = set(among)
    found: dict[_Item, list[_Item]] = {}
    for left, right in segments:
        if left in wanted:
            found.setdefault(right, []).append(left)
        if right in wanted:
            found.setdefault(left, []).append(right)
    return found


def _crossings(layers: Sequence[Sequence[_Item]], segments: Sequence[tuple[_Item, _Item]]) -> int:
    places = {item: place for layer in layers for place, item in enumerate(layer)}
    return sum(
        (places[a] - places[c]) * (places[b] - places[d]) < 0
        for number, (a, b) in enumerate(segments)
        for c, d in segments[:number]
        if a[1] == c[1]
    )


def _centres(
    layers: Sequence[Sequence[_Item]], segments: Sequence[tuple[_Item, _Item]], sizes: Mapping[_Item, float]
) -> dict[_Item, float]:
    """Heights near those of the neighbours, in the layers' order and without overlaps; the topmost edge is 0."""
    middle = {item: 0.0 for layer in layers for item in layer}
    neighbours = _neighbours(segments, middle)
    for _ in range(_SWEEPS):
        for layer in [*layers, *reversed(layers)]:
            wishes = [fmean(middle[other] for other in neighbours[item]) for item in layer]
            middle.update(zip(layer, _apart(wishes, [sizes[item] for item in layer]), strict=True))
    top = min((middle[item] - sizes[item] / 2 for item in middle), default=0.0)
    return {item: value - top for item, value in middle.items()}


def _apart(wishes: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The centres nearest to ``wishes`` (least squares) that keep order and space: pool adjacent violators."""
    offsets = [0.0]
    for above, below in pairwise(sizes):
        offsets.append(offsets[-1] + above / 2 + _SPACE + below / 2)
    blocks: list[tuple[float, int]] = []  # mean, members
    for wish, offset in zip(wishes, offsets, strict=True):
        mean, members = wish - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, more = blocks.pop()
            mean, members = (mean * members + before * more) / (members + more), members + more
        blocks.append((mean, members))
    levels = [mean for mean, members in blocks for _ in range(members)]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]
