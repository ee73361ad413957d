"""The live page in a browser, used as a person would."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.browser import Browser
from tests.serve.running import Running
from tests.serve.test_page_facts import with_map, with_page
from tests.serve.tiny import ITEMS, other_run, replace_part, write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    run = write_run(tmp_path_factory.mktemp("runs") / "tiny")
    replace_part(run, "item_attributes.parquet", with_moods)
    other = other_run(run, "other")
    with_map(with_page(run, {"title": "item_title"}))
    running = Running(run, "--beside", f"{other}", token="")
    yield running
    running.stop()


def with_moods(path: Path) -> None:
    moods = pa.array([["calm"], ["calm", "new"], [], ["new"], None, ["old"], ["old"]])
    pq.write_table(pq.read_table(path).append_column("moods", moods), path)


LISTED = "[...document.querySelectorAll('#items .id')].map(shown => shown.textContent)"
SEEN = "[...document.querySelectorAll('#seen .id')].map(shown => shown.textContent)"


def recommend(browser: Browser, **fields: str) -> list[str]:
    """Types into fields, presses the button, and waits for the reply."""
    for name, value in fields.items():
        browser.run(f"at({name!r}).value = {value!r}; at({name!r}).dispatchEvent(new Event('input'))")
    browser.run("at('title').textContent = 'requested'; document.querySelector('button.main').click()")
    browser.until("at('title').textContent !== 'requested' || at('problem').textContent")
    return list(browser.run(LISTED))


def test_a_person_requests_filters_and_likes(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/")
    browser.until("document.querySelectorAll('#items .id').length")
    assert browser.run("location.search") == "?user=30"  # it opens on a user
    assert "7 items · 4 users" in browser.until("at('about').textContent.includes('items') && at('about').textContent")
    browser.until("at('users').children.length === 4")

    first = recommend(browser, user="10", k="3")
    expected = service.call("/v1/recommend", {"user_id": 10, "k": 3})
    assert first == [item["item_id"] for item in expected["items"]]
    assert browser.run(SEEN) == ["cold", "b", "a"]
    reasons = "[...document.querySelectorAll('.reasons')].map(shown => shown.textContent)"
    because = browser.until(f"{reasons}.find(text => text.startsWith('because'))")  # the share depends on the hour
    assert re.match(r"because of [ab] \((\d+ %|[\d.]+)\)", because), because
    assert "length_s" in browser.run("document.querySelector('#items .facts').textContent")

    red = recommend(browser, filter="colour = 'red'", k="9")
    assert sorted(red) == ["d", "f"]
    assert recommend(browser, exclude="d") == ["f"]
    assert sorted(recommend(browser, filter="", exclude="")) == ["c", "d", "e", "f"]

    browser.run("document.querySelector('#items button[title=\"record that the user liked the item\"]').click()")
    browser.until("document.querySelectorAll('#seen .id').length === 4")
    assert browser.run(f"{SEEN}[0]") not in browser.run(LISTED)

    browser.run("document.querySelector('#seen button').click()")
    browser.until("at('title').textContent.startsWith('Items similar to')")
    assert len(browser.run(LISTED)) == len(ITEMS) - 1

    recommend(browser, filter="color = 'red'")
    assert "nearest: `colour`" in browser.run("at('problem').textContent")
    recommend(browser, filter="", user="someone else")
    assert browser.run("at('title').textContent") == "Popular items, because nothing is known of user someone else"
    assert "nothing is known of this user" in browser.run("at('warnings').textContent")
    assert recommend(browser, history="a, cold")
    assert browser.run("at('title').textContent") == "Recommendations for this history"
    assert {url.split("/")[2] for url in browser.requested if url.startswith("http")} == {f"127.0.0.1:{service.port}"}


def test_the_page_of_routes_sends_what_it_shows(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/docs")
    browser.until("document.querySelectorAll('details').length === 18")
    browser.run("document.querySelector('textarea').value = '{\"user_id\": 10, \"k\": 1}'")
    browser.run("document.querySelector('details button').click()")
    assert '"rank": 1' in browser.until("document.querySelector('pre').textContent")
    assert "exclude_seen" in browser.run("document.querySelector('details').textContent")


def test_a_link_opens_with_its_list_and_text_stays_text(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?user=<b>10</b>&k=2")
    browser.until("at('title').textContent.includes('user <b>10</b>')")
    assert browser.run("document.querySelectorAll('#title b').length") == 0


def test_chips_and_sliders_filter_and_each_state_has_an_address(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?user=10&include_seen=1")
    browser.until("document.querySelectorAll('#items .id').length === 7")
    browser.run("[...document.querySelectorAll('.chip')].find(chip => chip.textContent === 'red').click()")
    browser.until("document.querySelectorAll('#items .id').length === 4")
    assert browser.run("location.search") == "?user=10&include_seen=1&v.colour=red"
    assert " ms" in browser.run("at('time').textContent")

    drag = "r.value = {}; r.dispatchEvent(new Event('input'));"
    moves = " ".join(drag.format(place) for place in (5, 4, 3))
    slider = "const r = document.querySelectorAll('.range input')[1]; r.focus();"
    browser.run(f"(() => {{ {slider} {moves} r.dispatchEvent(new Event('change')); }})()")
    browser.until("document.querySelectorAll('#items .id').length === 2")  # a and d: red, at most 20 s
    assert sorted(browser.run(LISTED)) == ["a", "d"]
    assert browser.run("location.search").endswith("&r.length_s=5..20")
    assert "5 – 20" in browser.run("document.querySelector('.ends').textContent")

    browser.run("history.back()")  # a drag is one step
    browser.until("document.querySelectorAll('#items .id').length === 4")
    browser.run("history.back()")
    browser.until("document.querySelectorAll('#items .id').length === 7")
    browser.open(f"http://127.0.0.1:{service.port}/?user=10&include_seen=1&v.colour=red&r.length_s=5..20")
    browser.until("document.querySelectorAll('#items .id').length === 2")
    assert browser.run("document.querySelector('.chip[aria-pressed=true]').textContent") == "red"


def test_a_chip_of_a_column_of_lists_finds_every_item_that_has_it(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?user=10&include_seen=1")
    browser.until("document.querySelectorAll('#items .id').length === 7")
    for chip, expected in (("calm", ["a", "b"]), ("new", ["a", "b", "d"])):
        browser.run(f"[...document.querySelectorAll('.chip')].find(chip => chip.textContent === '{chip}').click()")
        browser.until(f"document.querySelectorAll('#items .id').length === {len(expected)}")
        assert sorted(browser.run(LISTED)) == expected


def test_a_stranger_picks_five_and_the_answers_follow(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?pick=1")
    browser.until("at('choices').children.length === 7")
    for number in range(5):
        browser.run(f"at('choices').children[{number}].click()")
        browser.until(f"ids(state.history).length === {number + 1} && !isBusy")
    assert browser.run("at('picking').hidden")
    assert browser.run("at('title').textContent") == "Recommendations for this history"
    assert len(browser.run(LISTED)) == 2
    browser.run("history.back()")
    browser.until("!at('picking').hidden && at('picked').textContent === '4 of 5'")


def test_two_bundles_stand_side_by_side_with_moved_ranks(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?user=10")
    browser.until("document.querySelectorAll('#items .id').length")
    browser.run("at('compare').click()")
    browser.until("document.querySelectorAll('#other_items .move').length")
    assert browser.run("location.search") == "?user=10&beside=1"
    assert browser.run("at('other_title').textContent") == "Run other"
    moves = "[...document.querySelectorAll('#other_items .move')].map(shown => shown.textContent)"
    assert set(browser.run(moves)) == {"same place"}  # the bundles are equal
    item = "{item_id: 'x', rank: 1, score: 1}"
    assert browser.run(f"moved({item}, new Map([['x', 4]])).textContent") == "▲ 3"
    assert browser.run(f"moved({item}, new Map()).textContent") == "only here"


def test_the_dot_walks_after_a_like_and_back_after_undo(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?user=20")
    browser.until("document.querySelectorAll('#items .id').length && trail.length === 1 && !isBusy")
    first = browser.run("trail[0].join()")
    browser.run("document.querySelector('#items button[title=\"record that the user liked the item\"]').click()")
    browser.until("document.querySelector('#warnings button') && !isBusy")
    assert browser.run("trail.length") == 2
    browser.run("document.querySelector('#warnings button').click()")
    browser.until("!document.querySelector('#warnings button') && !isBusy")
    assert browser.run("trail.map(spot => spot.join())") == [first]


@pytest.mark.parametrize("width", [1280, 760, 420])
def test_nothing_is_wider_than_the_window(browser: Browser, service: Running, width: int) -> None:
    browser.resize(width)
    browser.open(f"http://127.0.0.1:{service.port}/?user=10&beside=1&pick=1")
    browser.until("document.querySelectorAll('#other_items .move').length || at('choices').children.length")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("at('past').open") is False  # the history is folded
    assert browser.run("at('sieve').open") is (width > 700)
