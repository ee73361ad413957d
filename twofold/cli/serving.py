"""Commands that use a finished run: recommendations on the terminal, the HTTP service, a copy in a vector database."""

import json
import os
import shlex
import sys
from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import twofold
from twofold.cli.options import RunFolder
from twofold.errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa

    from twofold.dataset.vocabulary import Vocabulary
    from twofold.index.item_index import Index


EXPORT_TIMEOUT_S: Final = 60  # of Qdrant, for a request with thousands of items


class Database(StrEnum):
    """Vector databases that an index can be copied to."""

    qdrant = "qdrant"


def _checked_k(k: int) -> int:
    from twofold.topk import MAX_K

    if not 1 <= k <= MAX_K:
        raise RequestError(f"-k {k}: a list has 1 to {MAX_K} items. Write a number between them.")
    return k


def recommend(
    run_folder: RunFolder,
    user: Annotated[list[str] | None, typer.Option("--user", help="Id of a user of the log. Repeatable.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Items that a user outside the log liked, oldest first: 12,34,56.")
    ] = None,
    k: Annotated[int, typer.Option("-k", callback=_checked_k, help="Number of items per user, 1 to 1000.")] = 20,
    where: Annotated[str | None, typer.Option(help="Only items for which this is true: length_s < 60.")] = None,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Include items the user has seen.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line per item.")] = False,
) -> None:
    """Recommend the best k items to users of the log, or to an unknown user with the given history."""
    if (user is None) == (history is None):
        problem = "no user given" if user is None else "--user and --history exclude each other"
        raise RequestError(f"{problem}: pass --user ID (repeatable) or --history ID,ID,ID")
    recommender, exclude_seen = twofold.load(run_folder), False if include_seen else None
    if history is not None:
        items = [item.strip() for item in history.split(",") if item.strip()]
        answer = recommender.recommend_for_history(items, k=k, where=where, exclude_seen=exclude_seen)
        _note_unknown(items, recommender.bundle.items)
    else:
        answer = recommender.recommend(user or [], k=k, where=where, exclude_seen=exclude_seen)
    if as_json:
        for row in answer.to_pylist():
            print(json.dumps(row))
        return
    titles = _titles_of(run_folder)
    table = Table(*answer.column_names, *(["title"] if titles else []))
    for row in answer.to_pylist():
        cells = (*row.values(), *([titles.get(row["item_id"])] if titles else []))
        table.add_row(*(Text(_shown(value), overflow="fold") for value in cells))  # a cut id is none
    Console().print(table)
    as_of = int(answer.schema.metadata[b"at"])
    print(f"as of {datetime.fromtimestamp(as_of / 1000, UTC):%Y-%m-%d %H:%M} UTC; the service answers as of now")


def _shown(value: Any) -> str:
    """Returns a cell of the table: of a score four decimals, or three digits if it is too small for them.

    >>> _shown(0.71234), _shown(-12.5), _shown(1.5e-22), _shown(0.0), _shown(12), _shown(None)
    ('0.7123', '-12.5000', '1.5e-22', '0.0000', '12', '–')
    """
    from twofold.ingest.table_profile import printable

    if not isinstance(value, float):
        return "–" if value is None else printable(str(value))
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _titles_of(run_folder: Path) -> dict[Any, str]:
    """Returns the titles of the items by id; empty if they have neither a column `title` nor one `name`."""
    import pyarrow.parquet as pq

    path = run_folder / "index" / "item_attributes.parquet"
    name = next((each for each in ("title", "name") if each in pq.read_schema(path).names), None)
    if name is None:
        return {}
    table = pq.read_table(path, columns=["item_id", name])
    pairs = zip(table["item_id"].to_pylist(), table[name].to_pylist(), strict=True)
    return {item: str(title) for item, title in pairs if title is not None}


def _note_unknown(items: list[str], known: "Vocabulary") -> None:
    unknown = [item for item in items if known.row_of(item) < 0]
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else "")
        print(f"note: left out of the history, since the catalogue has no such item: {listed}", file=sys.stderr)


# Options of `serve`.
_Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")]
_Workers = Annotated[int, typer.Option(min=1, help="Number of processes; one per core is best.")]
_Histories = Annotated[
    str | None,
    typer.Option(
        help="Store of live events: a SQLite file or redis://HOST:PORT/DB; default: RUN.serve/histories.db.",
        envvar="TWOFOLD_HISTORIES",
    ),
]
_KeepDays = Annotated[
    int, typer.Option(min=1, help="Days after a user's last post until the user's live events are deleted.")
]
_Drain = Annotated[
    float, typer.Option(min=0, help="Seconds between SIGTERM, when /ready fails, and the end of new connections.")
]
_Follow = Annotated[
    Path | None,
    typer.Option(help="Pointer of `twofold publish`: serve the bundle that it names, now and whenever it changes."),
]
_Traces = Annotated[
    str | None,
    typer.Option(
        help="Collector that gets spans of requests, OTLP over HTTP: http://HOST:4318.", envvar="TWOFOLD_TRACES"
    ),
]
_Qdrant = Annotated[
    str | None,
    typer.Option(
        help="Qdrant that searches in place of the run's own index, http://HOST:6333; see `twofold export`.",
        envvar="TWOFOLD_QDRANT",
    ),
]
_Beside = Annotated[
    Path | None, typer.Option(help="A second run, whose lists the page shows beside those of the first.")
]
_LogRequests = Annotated[bool, typer.Option("--log-requests", help="Log one line per request.")]


def serve(
    run_folder: RunFolder,
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    workers: _Workers = 1,
    histories: _Histories = None,
    keep_days: _KeepDays = 90,
    drain: _Drain = 0,
    follow: _Follow = None,
    traces: _Traces = None,
    qdrant: _Qdrant = None,
    log_requests: _LogRequests = False,
    beside: _Beside = None,
) -> None:
    """Serve recommendations over HTTP, with a page to try them.

    If the environment variable TWOFOLD_TOKEN is set, every request must carry it as a bearer token; it is required if
    other machines are accepted. Swaps, item changes and data of users require TWOFOLD_ADMIN_TOKEN. A store with a
    password is named in TWOFOLD_HISTORIES, because other users of the machine can read command lines.
    """
    from twofold.serve.workers import ServeOptions
    from twofold.serve.workers import serve as serve_run

    def print_url(port: int) -> None:
        print(f"http://{host}:{port}/       a page to try it;  /docs: every route", flush=True)

    store = histories or str(_default_store(run_folder))
    beside = beside and beside.resolve()  # a worker that is started later opens the same run
    options = ServeOptions(
        run_folder, store, host, port, workers, log_requests, keep_days, drain, beside, follow, traces, qdrant
    )
    serve_run(options, on_listening=print_url)


def _default_store(run_folder: Path) -> Path:
    """Returns the store beside a run folder, called as the command line names the run: a bundle that takes its place,
    by a link or under its name, has the same store. RequestError if the events are still inside the run folder.
    """
    run = os.path.abspath(run_folder)  # without following a link
    store, inside = Path(f"{run}.serve") / "histories.db", Path(run) / "serve" / "histories.db"
    if inside.exists() and not store.exists():
        folder = shlex.quote(str(store.parent))
        raise RequestError(
            f"the live events, withdrawn items and deleted users of this service are in {inside}, where a swap would "
            f"lose them. Stop what uses it, and move it: mkdir -p {folder} && "
            f"mv {shlex.quote(str(inside.parent))}/histories.db* {folder}/"
        )
    return store


def publish(
    run_folder: RunFolder,
    pointer: Annotated[
        Path, typer.Argument(help="A file on storage that all hosts share, such as shared/current.json.")
    ],
) -> None:
    """Make a pointer name a run: services started with --follow POINTER swap to it, on every host.

    The bundle is copied beside the pointer, unless the run is there already.
    """
    from twofold.serve.bundle_pointer import publish as publish_run

    published = publish_run(run_folder, pointer)
    print(f"{pointer} names {published.run}, bundle {published.bundle[:12]}")


def export(
    run_folder: Annotated[Path, typer.Argument(help="A run folder, such as runs/kuairand.")],
    to: Annotated[Database, typer.Option("--to", help="Vector database to copy to.")],
    url: Annotated[str, typer.Option("--url", help="Address of Qdrant, http://HOST:6333, or a folder.")],
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the new collection; default: the one that `serve --qdrant` looks for."),
    ] = None,
) -> None:
    """Copy item vectors and attributes into Qdrant, for a catalogue beyond one machine or for other programs."""
    import pyarrow.parquet as pq

    from twofold.index.item_index import load_index
    from twofold.index.qdrant_search import collection_name
    from twofold.run_folder import open_stage
    from twofold.serve.bundle import content_digest

    if find_spec("qdrant_client") is None:
        raise RequestError(
            f"--to {to.value} needs qdrant_client, which is not installed: pip install 'twofold[qdrant]'"
        )
    folder = open_stage(run_folder, "index", verify=True).folder
    index, attributes = load_index(folder), pq.read_table(folder / "item_attributes.parquet")
    name = collection_name(content_digest(run_folder)) if name is None else name
    _into_qdrant(index, attributes, url=url, collection=name)
    print(f"{len(index):,} items  {to.value} {url}  {name}")


def _into_qdrant(index: "Index", attributes: "pa.Table", *, url: str, collection: str) -> None:
    from qdrant_client.http.exceptions import ApiException

    from twofold.index.export import export_qdrant
    from twofold.index.qdrant_search import connect

    try:
        with closing(connect(url, timeout_s=EXPORT_TIMEOUT_S)) as client:
            export_qdrant(index, attributes, client, collection=collection)
    except (ApiException, OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"--url {url}: the index cannot be copied there: {error}. Give http://HOST:6333, or a folder for Qdrant's "
            f"embedded mode. If the copy had begun, delete the incomplete collection or choose another --name."
        ) from error
