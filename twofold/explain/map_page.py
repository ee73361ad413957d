"""The page of an item map, which needs only a browser, and its picture; Vega-Lite draws both.

Ids, attributes and column names are untrusted text. They are data of the drawing, never part of its program: the
specification refers to columns by number, the page holds everything as escaped JSON, Vega evaluates its expressions in
an interpreter, and the page's content security policy forbids every other script and every request.
"""

import base64
import hashlib
from collections import Counter
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from twofold.explain.map import ItemMap, MapUsers, draw_map, points_table
from twofold.render.html import fill_page
from twofold.run_folder import atomic_file
from twofold.tables import Json

_WIDTH: Final = 880
_HEIGHT: Final = 620
_COLORS: Final = 9  # the most frequent values of an attribute have their own color; the others share one
_MAX_ATTRIBUTES: Final = 12
_PALETTE: Final = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#ff9da6", "#9d755d", "#bab0ac"),
    *("#1f3f66", "#a85508", "#2f6b2a", "#93262b", "#3a7d78", "#6f3f63", "#9c8412", "#b85b66", "#5d4233", "#6b6360"),
)
_DRAW: Final = """
const drawing = JSON.parse(document.getElementById("drawing").textContent);
const width = document.getElementById("map").clientWidth;
drawing.height = Math.min(drawing.height, Math.max(320, 0.75 * width));
if (width < 1000) Object.assign(drawing.config.legend, {orient: "bottom", columns: width < 640 ? 1 : 2});
vegaEmbed("#map", drawing, {renderer: "canvas", ast: true, actions: false}).then(drawn => { window.map = drawn.view; });
"""


def map_run(
    out: Path, vectors: Float32[np.ndarray, "items dim"], attributes: pa.Table, *, users: MapUsers
) -> dict[str, Json]:
    """Writes the map of a run into a folder and returns its facts for the card.

    Without the extra `explain`, the only fact is how to install it.
    """
    if find_spec("openTSNE") is None or find_spec("vl_convert") is None:
        return {
            "missing": "This run has no map. Install it with pip install 'twofold[explain]', delete the run's folder "
            "explain, and run again."
        }
    item_map = draw_map(vectors, attributes, users=users)
    write_map(item_map, out)
    clusters = [
        asdict(each) | {"color": _PALETTE[number % len(_PALETTE)]} for number, each in enumerate(item_map.clusters)
    ]
    return {"drawn": item_map.summary, "trust": item_map.trustworthiness, "clusters": clusters}


def write_map(item_map: ItemMap, folder: Path) -> None:
    """Writes map.parquet, map.html and map.png into a folder."""
    with atomic_file(folder / "map.parquet") as partial:
        pq.write_table(points_table(item_map), partial, compression="zstd")
    with atomic_file(folder / "map.html") as partial:
        partial.write_text(map_page(item_map), encoding="utf-8")
    with atomic_file(folder / "map.png") as partial:
        partial.write_bytes(map_picture(item_map))


def map_page(item_map: ItemMap) -> str:
    """Returns the interactive map as one HTML page, with search, colors, hover and the neighbors of a point."""
    import vl_convert

    script = vl_convert.javascript_bundle() + _DRAW  # type: ignore[call-arg]  # its stub forgets a default
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    users = len(item_map.ids) - item_map.num_items
    values = {"map": item_map, "drawing": _interactive(item_map), "script": script, "digest": digest, "users": users}
    return fill_page(("twofold.explain",), "map.html.j2", values)


def map_picture(item_map: ItemMap) -> bytes:
    """Returns the map as PNG, colored by cluster; the page of the run has its legend."""
    import vl_convert

    encoding = _encoding("c", item_map)
    for channel in ("color", "shape"):
        encoding[channel]["legend"] = None
    marks = {"mark": _marks(0.75), "encoding": encoding}
    return vl_convert.vegalite_to_png(_frame(item_map) | marks, scale=1)


def _frame(item_map: ItemMap) -> dict[str, Json]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": _WIDTH,
        "height": _HEIGHT,
        "background": "white",
        "data": {"name": "points", "values": _points(item_map)},
        "config": {
            "view": {"stroke": "#e3e1dc"},
            "legend": {"labelLimit": 320, "symbolLimit": 30, "labelFontSize": 12},
        },
    }


def _points(item_map: ItemMap) -> list[dict[str, Json]]:
    """Returns a record per point: x, y, number n, kind k, id i, cluster c, neighbors s; attributes as color values a0…
    and as text t0….
    """
    users = len(item_map.ids) - item_map.num_items
    xy, nearest = np.round(item_map.xy.astype(float), 3).tolist(), item_map.nearest.tolist()
    columns: dict[str, list[Json]] = {
        "n": list(range(len(item_map.ids))),
        "k": ["item"] * item_map.num_items + ["user"] * users,
        "i": list(item_map.ids),
        "c": [item_map.clusters[each].name for each in item_map.cluster],
        "s": [f" {' '.join(str(each) for each in points if each >= 0)} " for points in nearest],
    }
    for number, facet in enumerate(item_map.facets[:_MAX_ATTRIBUTES]):
        columns[f"a{number}"] = [*facet.first(item_map.num_items, most=_COLORS), *["user"] * users]
        columns[f"t{number}"] = [*_texts(item_map, facet.name), *[""] * users]
    rows = zip(*columns.values(), strict=True)
    return [{"x": x, "y": y} | dict(zip(columns, row, strict=True)) for (x, y), row in zip(xy, rows, strict=True)]


def _texts(item_map: ItemMap, name: str) -> list[str]:
    """Returns each item's value as text."""
    values = item_map.attributes[name].to_pylist()
    return [
        "" if each is None else ", ".join(map(str, each)) if isinstance(each, list) else str(each) for each in values
    ]


_QUIET: Json = {"test": "search != '' || isValid(picked.s)", "value": 0.15}
"""Opacity of the other points while some are searched or picked."""


def _interactive(item_map: ItemMap) -> dict[str, Json]:
    facets = item_map.facets[:_MAX_ATTRIBUTES]
    labels = Counter(facet.label for facet in facets)
    names = [facet.label if labels[facet.label] == 1 else facet.name for facet in facets]
    keys = ["c", "k", *(f"a{number}" for number in range(len(names)))]
    texts = ["datum.i", *(f"datum.t{number}" for number in range(len(names)))]
    picked = {"type": "point", "fields": ["n", "s"], "on": "click", "clear": "dblclick"}
    found = f"search != '' && indexof(lower(join([{', '.join(texts)}], ' | ')), lower(search)) >= 0"
    is_near = "isValid(picked.s) && (picked.n[0] == datum.n || indexof(picked.s[0], ' ' + datum.n + ' ') >= 0)"
    tooltip = [{"field": "i", "title": "id"}, {"field": "k", "title": "kind"}, {"field": "c", "title": "cluster"}]
    # The space after the name: vega-tooltip fetches the value of a field titled exactly "image".
    tooltip += [{"field": f"t{number}", "title": f"{name} "} for number, name in enumerate(names)]
    colors = {"input": "select", "options": keys, "labels": ["cluster", "kind", *names], "name": "color by"}
    return _frame(item_map) | {
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [
            {"name": "by", "value": "c", "bind": colors},
            {"name": "search", "value": "", "bind": {"input": "search", "name": "search", "placeholder": "id, value"}},
        ],
        "transform": [{"calculate": "datum[by]", "as": "group"}, {"calculate": found, "as": "found"}],
        "layer": [
            {
                "params": [
                    {"name": "view", "select": "interval", "bind": "scales"},
                    {"name": "picked", "select": picked},
                ],
                "mark": _marks(0.75),
                "encoding": _encoding("group", item_map)
                | {"tooltip": tooltip, "opacity": {"condition": _QUIET, "value": 0.75}},
            },
            {
                "transform": [{"filter": f"datum.found || ({is_near})"}],
                "name": "marked",
                "mark": _marks(1.0),
                "encoding": _encoding("group", item_map)
                | {"tooltip": tooltip, "size": {"value": 70}, "stroke": {"value": "#111"}},
            },
        ],
    }


def _marks(opacity: float) -> dict[str, Json]:
    return {"type": "point", "filled": True, "opacity": opacity, "clip": True, "strokeWidth": 0.5}


def _encoding(color: str, item_map: ItemMap) -> dict[str, Json]:
    """Returns an encoding on fixed scales, so that neither a search nor a click moves the points."""
    low, high = (item_map.xy.min(axis=0), item_map.xy.max(axis=0)) if len(item_map.xy) else (np.zeros(2), np.ones(2))
    margin = np.maximum((high - low) * 0.04, 1e-3)
    position = {
        axis: {
            "field": axis,
            "type": "quantitative",
            "axis": None,
            "scale": {"domain": [float(start), float(end)], "nice": False, "zero": False},
        }
        for axis, start, end in zip("xy", low - margin, high + margin, strict=True)
    }
    is_user = "datum.k == 'user'"
    kinds = {"domain": ["item", "user"], "range": ["circle", "triangle-up"]}
    return position | {
        "color": {"field": color, "type": "nominal", "title": None, "scale": {"range": list(_PALETTE)}},
        "shape": {"field": "k", "type": "nominal", "title": None, "scale": kinds},
        "size": {"condition": {"test": is_user, "value": 44}, "value": 26},
        "stroke": {"condition": {"test": is_user, "value": "#111"}, "value": None},
    }
