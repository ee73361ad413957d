"""An Atlas → one page that needs nothing but a browser, and a picture; Vega-Lite draws both.

Ids, attributes and names of columns are untrusted text. They are data of the drawing, never part of its program:
columns go by number in the specification, the page holds all of it as escaped JSON, Vega reads its expressions with an
interpreter, and the page's own policy forbids every other script and every request.
"""

import base64
import hashlib
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
import vl_convert

from twofold.explain.map import Atlas, points_table
from twofold.render.html import fill_page
from twofold.run_folder import atomic_file
from twofold.tables import Json

_WIDTH: Final = 880
_HEIGHT: Final = 620
_COLOURS: Final = 9  # the commonest values of an attribute have their own; the others share one
_MOST_ATTRIBUTES: Final = 12
_PALETTE: Final = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#ff9da6", "#9d755d", "#bab0ac"),
    *("#1f3f66", "#a85508", "#2f6b2a", "#93262b", "#3a7d78", "#6f3f63", "#9c8412", "#b85b66", "#5d4233", "#6b6360"),
)
_DRAW: Final = """
const drawing = JSON.parse(document.getElementById("drawing").textContent);
vegaEmbed("#map", drawing, {renderer: "canvas", ast: true, actions: false}).then(drawn => { window.map = drawn.view; });
"""


def write_map(atlas: Atlas, folder: Path) -> None:
    """Writes map.parquet, map.html and map.png into a folder."""
    with atomic_file(folder / "map.parquet") as partial:
        pq.write_table(points_table(atlas), partial, compression="zstd")
    with atomic_file(folder / "map.html") as partial:
        partial.write_text(map_page(atlas), encoding="utf-8")
    with atomic_file(folder / "map.png") as partial:
        partial.write_bytes(map_picture(atlas))


def map_page(atlas: Atlas) -> str:
    """The interactive map as one HTML page: search, colours, hover, the neighbours of a point."""
    script = vl_convert.javascript_bundle() + _DRAW  # type: ignore[call-arg]  # its stub forgets a default
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    users = len(atlas.ids) - atlas.num_items
    values = {"atlas": atlas, "drawing": _interactive(atlas), "script": script, "digest": digest, "users": users}
    return fill_page("twofold.explain", "map.html.j2", values)


def map_picture(atlas: Atlas) -> bytes:
    """The map as PNG, coloured by cluster."""
    marks = {"mark": _marks(0.75), "encoding": _encoding("c", atlas)}
    picture: bytes = vl_convert.vegalite_to_png(_frame(atlas) | marks, scale=1)
    return picture


def _frame(atlas: Atlas) -> dict[str, Json]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": _WIDTH,
        "height": _HEIGHT,
        "background": "white",
        "data": {"name": "points", "values": _points(atlas)},
        "config": {
            "view": {"stroke": "#e3e1dc"},
            "legend": {"labelLimit": 260, "symbolLimit": 30, "labelFontSize": 12},
        },
    }


def _points(atlas: Atlas) -> list[dict[str, Json]]:
    """A record a point: x, y, its number n, kind k, id i, cluster c and neighbours s; attributes a0… as they colour and
    t0… as they are.
    """
    users = len(atlas.ids) - atlas.num_items
    xy, near = np.round(atlas.xy.astype(float), 3).tolist(), atlas.nearest.tolist()
    columns: dict[str, list[Json]] = {
        "n": list(range(len(atlas.ids))),
        "k": ["item"] * atlas.num_items + ["user"] * users,
        "i": list(atlas.ids),
        "c": [atlas.clusters[each].name for each in atlas.cluster],
        "s": [f" {' '.join(str(each) for each in line if each >= 0)} " for line in near],
    }
    for place, facet in enumerate(atlas.facets[:_MOST_ATTRIBUTES]):
        columns[f"a{place}"] = [*facet.first(atlas.num_items, most=_COLOURS), *["user"] * users]
        columns[f"t{place}"] = [*_texts(atlas, facet.name), *[""] * users]
    lines = zip(*columns.values(), strict=True)
    return [{"x": x, "y": y} | dict(zip(columns, line, strict=True)) for (x, y), line in zip(xy, lines, strict=True)]


def _texts(atlas: Atlas, name: str) -> list[str]:
    """Each item's value as a person reads it."""
    given = atlas.attributes[name].to_pylist()
    return [
        "" if each is None else ", ".join(map(str, each)) if isinstance(each, list) else str(each) for each in given
    ]


def _interactive(atlas: Atlas) -> dict[str, Json]:
    names = [facet.name for facet in atlas.facets[:_MOST_ATTRIBUTES]]
    keys = ["c", "k", *(f"a{place}" for place in range(len(names)))]
    texts = ["datum.i", *(f"datum.t{place}" for place in range(len(names)))]
    picked = {"type": "point", "fields": ["n", "s"], "on": "click", "clear": "dblclick"}
    found = f"search != '' && indexof(lower(join([{', '.join(texts)}], ' | ')), lower(search)) >= 0"
    is_near = "isValid(picked.s) && (picked.n[0] == datum.n || indexof(picked.s[0], ' ' + datum.n + ' ') >= 0)"
    is_quiet = "search != '' || isValid(picked.s)"
    tooltip = [{"field": "i", "title": "id"}, {"field": "k", "title": "kind"}, {"field": "c", "title": "cluster"}]
    # The space: vega-tooltip fetches what stands under the very name "image".
    tooltip += [{"field": f"t{place}", "title": f"{name} "} for place, name in enumerate(names)]
    colours = {"input": "select", "options": keys, "labels": ["cluster", "kind", *names], "name": "colour by"}
    return _frame(atlas) | {
        "params": [
            {"name": "by", "value": "c", "bind": colours},
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
                "encoding": _encoding("group", atlas)
                | {"tooltip": tooltip, "opacity": {"condition": {"test": is_quiet, "value": 0.15}, "value": 0.75}},
            },
            {
                "transform": [{"filter": f"datum.found || ({is_near})"}],
                "name": "marked",
                "mark": _marks(1.0) | {"size": 70, "stroke": "#111", "strokeWidth": 1},
                "encoding": _encoding("group", atlas) | {"tooltip": tooltip},
            },
        ],
    }


def _marks(opacity: float) -> dict[str, Json]:
    return {"type": "point", "filled": True, "size": 26, "opacity": opacity, "clip": True}


def _encoding(colour: str, atlas: Atlas) -> dict[str, Json]:
    """Places on fixed scales, so that neither a search nor a click moves them."""
    low, high = (atlas.xy.min(axis=0), atlas.xy.max(axis=0)) if len(atlas.xy) else (np.zeros(2), np.ones(2))
    margin = np.maximum((high - low) * 0.04, 1e-3)
    place = {
        axis: {
            "field": axis,
            "type": "quantitative",
            "axis": None,
            "scale": {"domain": [float(start), float(end)], "nice": False, "zero": False},
        }
        for axis, start, end in zip("xy", low - margin, high + margin, strict=True)
    }
    kinds = {"domain": ["item", "user"], "range": ["circle", "triangle-up"]}
    return place | {
        "color": {"field": colour, "type": "nominal", "title": None, "scale": {"range": list(_PALETTE)}},
        "shape": {"field": "k", "type": "nominal", "title": None, "scale": kinds},
    }
