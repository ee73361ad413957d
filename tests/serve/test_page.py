"""The live page in a browser, used as a person would."""

from collections.abc import Iterator

import pytest

from tests.browser import Browser
from tests.serve.running import Running
from tests.serve.tiny import ITEMS, write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(write_run(tmp_path_factory.mktemp("runs") / "tiny"), token="")
    yield running
    running.stop()


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
    assert "7 items · 4 users" in browser.until("at('about').textContent.includes('items') && at('about').textContent")
    browser.until("at('users').children.length === 4")

    first = recommend(browser, user="10", k="3")
    expected = service.call("/v1/recommend", {"user_id": 10, "k": 3})
    assert first == [item["item_id"] for item in expected["items"]]
    assert browser.run(SEEN) == ["cold", "b", "a"]
    assert browser.run("document.querySelector('#items .reasons').textContent").startswith("similar to ")
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
    browser.until("document.querySelectorAll('details').length === 13")
    browser.run("document.querySelector('textarea').value = '{\"user_id\": 10, \"k\": 1}'")
    browser.run("document.querySelector('details button').click()")
    assert '"rank": 1' in browser.until("document.querySelector('pre').textContent")
    assert "exclude_seen" in browser.run("document.querySelector('details').textContent")


def test_a_link_opens_with_its_list_and_text_stays_text(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?user=<b>10</b>&k=2")
    browser.until("at('title').textContent.includes('user <b>10</b>')")
    assert browser.run("document.querySelectorAll('#title b').length") == 0
