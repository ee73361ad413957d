"""A process of its own that waits for its turn; of the standard library alone, for every environment."""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

Work = Callable[[], object]


def take_turns(parts: dict[str, tuple[Work, int]], packages: list[str]) -> None:
    """States versions and parts; then does the part that each line read names, and states seconds and the examples.

    A part is what to do and how many examples (or positions) that teaches.
    """
    say({"versions": {package: version(package) for package in packages}, "parts": list(parts)})
    for line in sys.stdin:
        work, examples = parts[line.strip()]
        wall, processor = time.perf_counter(), time.process_time()
        work()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        say({"examples": examples, "wall_s": wall, "processor_s": processor})


def say(fact: dict) -> None:
    """One line of JSON; whatever else a package prints does not begin with a brace."""
    print("\n" + json.dumps(fact), flush=True)
