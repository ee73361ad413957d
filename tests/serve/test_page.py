"""The page in a browser, asked as a person would: headless Chromium, driven through a pipe."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.running import Running
from tests.serve.tiny import ITEMS, write_run

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
AS_3_AND_4 = """
import os, sys
os.dup2(int(sys.argv[1]), 3), os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab, by the DevTools protocol: JSON ended by a zero byte, on descriptors 3 and 4."""

    def __init__(self, profile: Path) -> None:
        ours_in, its_out = os.pipe()
        its_in, ours_out = os.pipe()
        command = [sys.executable, "-c", AS_3_AND_4, str(its_in), str(its_out), str(CHROMIUM), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"], pass_fds=(its_in, its_out), stderr=subprocess.DEVNULL
        )
        os.close(its_in)
        os.close(its_out)
        self._out, self._in = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self._number, self._session, self._rest = 0, "", b""
        self.requested: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Network.enable")

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while (reply := self._next()).get("id") != self._number:
            if reply.get("method") == "Network.requestWillBeSent":
                self.requested.append(reply["params"]["request"]["url"])
        assert "error" not in reply, reply
        return reply["result"]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            part = self._in.read1(65536)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        """The value of a script, once there is one."""
        for _ in range(200):
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page says {self.run('document.body.innerText')}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._out.close()
        self._in.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(write_run(tmp_path_factory.mktemp("runs") / "tiny"), token="")
    yield running
    running.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


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
    browser.until("document.querySelectorAll('details').length === 9")
    browser.run("document.querySelector('textarea').value = '{\"user_id\": 10, \"k\": 1}'")
    browser.run("document.querySelector('details button').click()")
    assert '"rank": 1' in browser.until("document.querySelector('pre').textContent")
    assert "exclude_seen" in browser.run("document.querySelector('details').textContent")


def test_a_link_opens_with_its_answer_and_text_stays_text(browser: Browser, service: Running) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/?user=<b>10</b>&k=2")
    browser.until("at('title').textContent.includes('user <b>10</b>')")
    assert browser.run("document.querySelectorAll('#title b').length") == 0
