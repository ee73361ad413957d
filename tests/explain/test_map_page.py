"""The page of a map: what it holds, and what a person sees in headless Chromium."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.browser import Browser
from twofold.explain.map import MapUsers, draw_map
from twofold.explain.map_page import map_page, write_map

HOSTILE = [
    "</script><script>document.title = 'taken'</script>",
    "<img src=https://attacker.example/pixel onerror=\"document.title = 'taken'\">",
    "' + (window.taken = 1) + '",
    "{{ 7 * 7 }} <!-- <script>",
    "javascript:alert(1)",
]
ITEMS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A map whose ids, values and names of columns attack the page that shows them."""
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 6)).astype(np.float32)
    attributes = pa.table(
        {
            "item_id": [f"{HOSTILE[row % len(HOSTILE)]} {row}" for row in range(ITEMS)],
            HOSTILE[0]: [HOSTILE[row % 2] for row in range(ITEMS)],
            "image": ["https://attacker.example/picture.png"] * ITEMS,
            "a.b['c']": [f"needle {row}" if row < 3 else "hay" for row in range(ITEMS)],
        }
    )
    users = MapUsers(pa.array([HOSTILE[1]]), vectors[:1], vectors)
    out = tmp_path_factory.mktemp("map")
    write_map(draw_map(vectors, attributes, users=users), out)
    return out


def test_untrusted_text_is_data(folder):
    page = (folder / "map.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    (drawing,) = re.findall(r'<script type="application/json" id="drawing">(.*?)</script>', page, re.DOTALL)
    points = json.loads(drawing)["data"]["values"]
    assert points[0]["i"] == f"{HOSTILE[0]} 0"
    assert not set("<>&'") & set(drawing)
    program = json.dumps(json.loads(drawing)["transform"])
    assert not any(text in program for text in HOSTILE)
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page


def test_a_picture_and_the_points_lie_beside_it(folder):
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "map.parquet").stat().st_size > 0


def test_a_map_of_nothing_is_a_page():
    nothing = np.zeros((0, 4), np.float32)
    empty = pa.table({"item_id": pa.array([], pa.int64())})
    page = map_page(draw_map(nothing, empty, users=MapUsers(pa.array([1]), nothing, nothing)))
    assert "0 of 0 items" in page


MARKS = """(() => {
  const found = [];
  const walk = part => { if (part.items) { found.push(part); part.items.forEach(walk); } };
  walk(window.map.scenegraph().root);
  const of = name => found.filter(part => part.name === name).flatMap(part => part.items);
  return of("marked_marks").map(item => item.datum.i);
})()"""


CLICK_THE_FIRST = """(() => {
  const point = window.map.data("points")[0], canvas = document.querySelector("canvas");
  const { left, top } = canvas.getBoundingClientRect(), { left: x, top: y } = window.map.padding();
  const at = { clientX: left + x + window.map.scale("x")(point.x), clientY: top + y + window.map.scale("y")(point.y) };
  for (const name of ["pointermove", "mousemove", "pointerdown", "mousedown", "pointerup", "mouseup", "click"])
    canvas.dispatchEvent(new (name.startsWith("p") ? PointerEvent : MouseEvent)(name, { bubbles: true, ...at }));
})()"""


@pytest.mark.slow
def test_a_person_searches_and_nothing_leaves_the_page(browser: Browser, folder: Path) -> None:
    address = (folder / "map.html").as_uri()
    browser.open(address)
    browser.until("!!window.map && !!document.querySelector('canvas')")
    assert browser.run(MARKS) == []

    browser.run(
        "document.querySelector('input[type=search]').value = 'NEEDLE';"
        "document.querySelector('input[type=search]').dispatchEvent(new Event('input'))"
    )
    browser.until(f"{MARKS}.length === 3")

    browser.run(
        "document.querySelector('input[type=search]').value = '';"
        "document.querySelector('input[type=search]').dispatchEvent(new Event('input'))"
    )
    browser.until(f"{MARKS}.length === 0")
    browser.run(CLICK_THE_FIRST)
    browser.until(f"{MARKS}.length === 11")  # the point and its ten neighbors

    browser.run(
        "document.querySelector('select').value = 'a2';"
        "document.querySelector('select').dispatchEvent(new Event('change'))"
    )
    browser.until("window.map.signal('by') === 'a2'")
    assert browser.run("document.title") == "map · twofold"
    assert not browser.run("'taken' in window")
    assert browser.requested == [address]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 1000, 760, 420])
def test_the_drawing_fits_the_window(browser: Browser, folder: Path, width: int) -> None:
    browser.resize(width)
    browser.open((folder / "map.html").as_uri())
    browser.until("!!window.map && !!document.querySelector('canvas')")
    edges = "['canvas', '.drawn'].map(name => document.querySelector(name).getBoundingClientRect().right)"
    canvas, box = browser.run(edges)
    assert canvas <= box <= width
    assert browser.run("document.documentElement.scrollWidth") <= width
    # The legend is within the canvas.
    assert browser.run("window.map.scenegraph().root.bounds.x2") <= canvas
