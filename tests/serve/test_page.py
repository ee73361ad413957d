"""The page in a browser, asked as a person would."""

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


ANSWERS = "[...document.querySelectorAll('#answers .id')].map(shown => shown.textContent)"
MET = "[...document.querySelectorAll('#met .id')].map(shown => shown.textContent)"


def ask(browser: Browser, **fields: str) -> list[str]:
    """Types into fields, presses the button, and waits for the reply."""
    for name, value in fields.items():
        browser.run(f"at({name!r}).value = {value!r}; at({name!r}).dispatchEvent(new Event('input'))")
    browser.run("at('title').textContent = 'asked'; document.querySelector('button.main').click()")
    browser.until("at('title').textContent !== 'asked' || at('problem').textContent")
    return list(browser.run(ANSWERS))


def test_a_person_asks_filters_and_likes(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/")
    assert "7 items · 4 users" in browser.until("at('about').textContent.includes('items') && at('about').textContent")
    browser.until("at('users').children.length === 4")

    first = ask(browser, user="10", k="3")
    expected = service.ask("/v1/recommend", {"user_id": 10, "k": 3})
    assert first == [item["item_id"] for item in expected["items"]]
    assert browser.run(MET) == ["cold", "b", "a"]
    assert browser.run("document.querySelector('#answers .why').textContent").startswith("like ")
    assert "length_s" in browser.run("document.querySelector('#answers .facts').textContent")

    red = ask(browser, filter="colour = 'red'", k="9")
    assert sorted(red) == ["d", "f"]
    assert ask(browser, exclude="d") == ["f"]
    assert sorted(ask(browser, filter="", exclude="")) == ["c", "d", "e", "f"]

    browser.run("document.querySelector('#answers button[title=\"they liked it\"]').click()")
    browser.until("document.querySelectorAll('#met .id').length === 4")
    assert browser.run(f"{MET}[0]") not in browser.run(ANSWERS)

    browser.run("document.querySelector('#met button').click()")
    browser.until("at('title').textContent.startsWith('Most like item')")
    assert len(browser.run(ANSWERS)) == len(ITEMS) - 1

    ask(browser, filter="color = 'red'")
    assert "nearest: `colour`" in browser.run("at('problem').textContent")
    ask(browser, filter="", user="someone else")
    assert browser.run("at('title').textContent") == "Popular, for lack of anything known of user someone else"
    assert "nothing is known of this user" in browser.run("at('remarks').textContent")
    assert ask(browser, history="a, cold")
    assert browser.run("at('title').textContent") == "Recommendations for this history"
    assert {url.split("/")[2] for url in browser.requested if url.startswith("http")} == {f"127.0.0.1:{service.port}"}


def test_the_page_of_routes_sends_what_it_shows(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/docs")
    browser.until("document.querySelectorAll('details').length === 10")
    browser.run("document.querySelector('textarea').value = '{\"user_id\": 10, \"k\": 1}'")
    browser.run("document.querySelector('details button').click()")
    assert '"rank": 1' in browser.until("document.querySelector('pre').textContent")
    assert "exclude_seen" in browser.run("document.querySelector('details').textContent")


def test_a_link_opens_with_its_answer_and_text_stays_text(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?user=<b>10</b>&k=2")
    browser.until("at('title').textContent.includes('user <b>10</b>')")
    assert browser.run("document.querySelectorAll('#title b').length") == 0
