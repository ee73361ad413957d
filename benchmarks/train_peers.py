"""Training examples a second, beside TFRS, torch-rechub, RecTools and RecBole.

    python benchmarks/train_peers.py [--rounds 3] [--threads 1] [--cache ~/.cache/twofold-peers]

Claims: an id two-tower (width 64, 140 k users, 27 k items, batch 4,096, softmax over the batch with log Q) teaches 2.5
times TFRS's examples a second and 10 times torch-rechub's; a causal transformer (width 64, 2 layers, 2 heads, softmax
over 3,416 items) 3 times the positions of RecTools' SASRec. RecBole is stated.

Their dependencies exclude one another, so each peer gets an environment under the cache, and a script of `peers/` that
says what of the peer is timed. All read the same events and have their batches made beforehand. Ours and theirs take
turns; a figure is the median of its rounds after one that warms up. Shares of cores come and go, so what is compared is
processor time; the clock's is in the file. Writes `train_peers.json` beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from peers.turns import Work, take_turns
from train import ITEMS, LENGTH, USERS, id_step, random_lines, random_sequences, sequence_pass

from twofold.dataset.malloc import keep_freed_memory
from twofold.model.fused_softmax import SoftmaxBatch

HERE = Path(__file__).parent
BATCHES, SEQUENCES, TAUGHT = 4, 6_040, 256


@dataclass(frozen=True)
class Peer:
    """Another package, and with which part of ours each of its parts is compared."""

    name: str
    script: str
    requirements: tuple[str, ...]
    data: str
    ours: dict[str, str | None]


PEERS = (
    Peer(
        "TFRS",
        "tfrs.py",
        ("tensorflow==2.21.0", "tf-keras==2.21.0", "tensorflow-recommenders==0.7.7"),
        "pairs.npz",
        {"Adam": "pairs", "Adagrad": "pairs"},
    ),
    Peer(
        "RecTools",
        "rectools_sasrec.py",
        ("rectools[torch]==0.19.0", "torch==2.13.0"),
        "sequences.npz",
        {"SASRec, 50": "50", "SASRec, 200": "200"},
    ),
    Peer(
        "torch-rechub",
        "rechub.py",
        ("torch-rechub==0.9.0", "torch==2.13.0"),
        "pairs.npz",
        {"in-batch softmax": "pairs"},
    ),
    Peer(
        "RecBole",
        "recbole_models.py",
        ("recbole==1.2.1", "torch==2.13.0", "numpy<2"),
        "sequences.npz",
        {"BPR": None, "SASRec, 50": "50"},
    ),
)


# --- data and ours ----------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """Pairs of ids, popular items first, with log Q; sequences of the lengths that MovieLens-1M has."""
    torch.manual_seed(0)
    batches = [random_lines(4096, USERS, ITEMS) for _ in range(BATCHES)]
    users, items, log_q = (
        torch.stack([getattr(lines, name) for lines in batches]).numpy() for name in ("user_rows", "item_rows", "log_q")
    )
    np.savez(folder / "pairs.npz", users=users, items=items, log_q=log_q, num_users=USERS, num_items=ITEMS)
    sequences = random_sequences(SEQUENCES, length=LENGTH)
    counts = np.array([len(each) for each in sequences])
    np.savez(folder / "sequences.npz", items=torch.cat(sequences).numpy(), counts=counts)


def take_our_turns(folder: Path, threads: int) -> None:
    """Trains twofold as the script of a peer trains the peer."""
    torch.set_num_threads(threads)
    pairs, file = (np.load(folder / name) for name in ("pairs.npz", "sequences.npz"))
    batches = [our_lines(*map(torch.from_numpy, each)) for each in zip(*(pairs[n] for n in NAMES), strict=True)]
    step = id_step(batches)
    sequences = torch.from_numpy(file["items"]).split(file["counts"].tolist())[:TAUGHT]

    def steps() -> None:
        for _ in batches:
            step()

    parts: dict[str, tuple[Work, int]] = {"pairs": (steps, pairs["users"].size)}
    parts |= {str(length): sequence_pass([each[-1 - length :] for each in sequences]) for length in (50, LENGTH)}
    with keep_freed_memory():  # as training does
        take_turns(parts, ["torch", "numpy"])


NAMES = ("users", "items", "log_q")


def our_lines(users: torch.Tensor, items: torch.Tensor, log_q: torch.Tensor) -> SoftmaxBatch:
    """A batch of pairs."""
    return SoftmaxBatch(users, items, torch.full((len(users),), 1 / len(users)), log_q, items, users, log_q)


# --- turns ------------------------------------------------------------------------------------------------------------


class Worker:
    """A process that does a part when told its name: see `peers/turns.py`."""

    def __init__(self, command: list[str], *, threads: int, log: Path) -> None:
        """Waits until it is ready; RuntimeError with what it said if it fails."""
        settings = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=settings
            )
        self.versions: dict[str, str] = self.answer()["versions"]

    def answer(self) -> dict:
        """The next fact that it states."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(" ".join(self.log.read_text().split()[-40:]))

    def do(self, part: str) -> dict:
        """One round of a part."""
        assert self.process.stdin is not None
        self.process.stdin.write(part + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """Lets it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def environment(peer: Peer, cache: Path) -> Path:
    """The interpreter of the peer's own environment, made if need be; RuntimeError with pip's last words."""
    folder = cache / peer.name.lower()
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *peer.requirements], stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return python


def compare(peer: Peer, theirs: Worker, ours: Worker, rounds: int) -> list[dict]:
    """Examples a second of each of the peer's parts, and of ours in turn; the first round warms up."""
    lines = []
    for part, our_part in peer.ours.items():
        found: dict[str, list[dict]] = {"ours": [], "theirs": []}
        for _ in range(1 + rounds):
            if our_part is not None:
                found["ours"].append(ours.do(our_part))
            found["theirs"].append(theirs.do(part))
        line: dict = {"peer": peer.name, "part": part}
        for clock in ("processor", "wall"):
            speed = {
                side: median(each["examples"] / each[f"{clock}_s"] for each in turns[1:])
                for side, turns in found.items()
                if turns
            }
            line |= {f"{side}, examples a {clock} second": round(value) for side, value in speed.items()}
            if "ours" in speed:
                line[f"ours over theirs, {clock}"] = round(speed["ours"] / speed["theirs"], 2)
        lines.append(line)
    return lines


def main(rounds: int, threads: int, cache: Path) -> None:
    """Runs everything, prints the table, saves the numbers."""
    lines: list[dict] = []
    versions: dict[str, dict[str, str] | str] = {"ours": {"twofold": version("twofold"), "torch": version("torch")}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder)
        ours = Worker(
            [sys.executable, __file__, "--ours", temporary, "--threads", str(threads)],
            threads=threads,
            log=folder / "ours.log",
        )
        for peer in PEERS:
            try:
                command = [environment(peer, cache), HERE / "peers" / peer.script, folder / peer.data, threads]
                theirs = Worker([str(part) for part in command], threads=threads, log=folder / f"{peer.name}.log")
            except RuntimeError as error:
                versions[peer.name] = f"skipped: {error}"
                continue
            versions[peer.name] = theirs.versions
            lines += compare(peer, theirs, ours, rounds)
            theirs.end()
        ours.end()
    facts = {"cores": os.cpu_count(), "threads": threads, "rounds": rounds}
    facts |= {"processor": torch.backends.cpu.get_cpu_capability()}
    (HERE / "train_peers.json").write_text(json.dumps(facts | {"versions": versions, "lines": lines}, indent=1) + "\n")
    print(json.dumps({"versions": versions, "lines": lines}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "twofold-peers")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        take_our_turns(options.ours, options.threads)
    else:
        main(options.rounds, options.threads, options.cache)
