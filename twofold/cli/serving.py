"""Commands that answer with a finished run: recommendations on the terminal, and the HTTP service."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import twofold
from twofold.cli.options import RunFolder
from twofold.errors import RequestError


def recommend(
    run_folder: RunFolder,
    user: Annotated[list[str] | None, typer.Option("--user", help="Id of a user of the log. Repeatable.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Items that a user outside the log liked, oldest first: 12,34,56.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of items per user.")] = 20,
    where: Annotated[str | None, typer.Option(help="Only items for which this is true: length_s < 60.")] = None,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Include items the user has seen.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line per item.")] = False,
) -> None:
    """Recommend the best k items to users of the log, or to an unknown user with the given history."""
    if (user is None) == (history is None):
        problem = "no user given" if user is None else "--user and --history exclude each other"
        raise RequestError(f"{problem}: pass --user ID (repeatable) or --history ID,ID,ID")
    recommender = twofold.load(run_folder)
    if history is not None:
        items = [item.strip() for item in history.split(",") if item.strip()]
        answer = recommender.recommend_for_history(items, k=k, where=where, exclude_seen=not include_seen)
    else:
        answer = recommender.recommend(user or [], k=k, where=where, exclude_seen=not include_seen)
    if as_json:
        for row in answer.to_pylist():
            print(json.dumps(row))
        return
    table = Table(*answer.column_names)
    for row in answer.to_pylist():
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def serve(
    run_folder: RunFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes; one per core is best.")] = 1,
    histories: Annotated[
        str | None,
        typer.Option(
            help="Store of live events: a SQLite file or redis://HOST:PORT/DB; default: RUN/serve/histories.db."
        ),
    ] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log one line per request.")] = False,
) -> None:
    """Serve recommendations over HTTP, with a page to try them.

    If the environment variable TWOFOLD_TOKEN is set, every request must carry it as a bearer token.
    """
    from twofold.serve.workers import ServeOptions
    from twofold.serve.workers import serve as serve_run

    print(f"http://{host}:{port}/       a page to try it;  /docs: every route", flush=True)
    store = histories or str(run_folder / "serve" / "histories.db")
    serve_run(ServeOptions(run_folder, store, host, port, workers, log_requests))
