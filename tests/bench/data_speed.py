"""How fast `data prepare` is beside bare tiktoken on the same text, and whether its memory grows with the input.

    python -m tests.bench.data_speed                 # the lines of `make bench --only data`

"Theirs" is one call of `encode_ordinary_batch` over a list of documents that is in memory already: no file is read, no
hash computed, nothing written. Ours is the whole program, from its start to the last fsync, by processor seconds of all
its processes, because what else runs on the machine hardly touches those. Never a timed test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.figure import Figure, at_least, at_most
from tests.support.files.texts import as_text, gpt2_vocabulary, paragraphs

MEASURED = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime,
                  "peak_bytes": used.ru_maxrss * 1024, "said": json.loads(done.stdout.splitlines()[-1])}))
"""
"""Runs a command and measures it: a process of its own, since the peak of children is that of all there ever were."""
BARE = """
import json, sys, time, tiktoken
documents = open(sys.argv[1], encoding="utf-8").read().split("<|endoftext|>")
encoding = tiktoken.get_encoding("gpt2")
encoding.encode_ordinary_batch(documents[:50])
began, cpu = time.perf_counter(), time.process_time()
tokens = sum(len(each) for each in encoding.encode_ordinary_batch(documents, num_threads=int(sys.argv[2])))
print(json.dumps({"tokens": tokens, "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}))
"""


def prepared(source: Path, to: Path, workers: int, tokenizer: str = "gpt2") -> dict[str, Any]:
    """What one preparation took."""
    command = [
        sys.executable, "-m", "trainer.prepare", "--source", source, "--workers", workers, "--tokenizer", tokenizer,
        "--to", to,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command)], check=True, capture_output=True, text=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def bare(source: Path, threads: int) -> dict[str, Any]:
    """What tiktoken alone takes."""
    done = subprocess.run([sys.executable, "-c", BARE, str(source), str(threads)], check=True, capture_output=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def figures(*, quick: bool) -> Iterator[Figure]:
    """Rates per core, with one worker and with all, and the peak of memory at one and ten times the input."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TIKTOKEN_CACHE_DIR"] = str(gpt2_vocabulary(folder / "vocabulary"))
        large = as_text(folder / "large.txt", paragraphs(24_000_000 if quick else 60_000_000))
        for workers in sorted({1, cores}):
            ours, theirs = prepared(large, folder / f"by-{workers}", workers), bare(large, workers)
            rates = (ours["said"]["tokens"] / ours["cpu_s"], theirs["tokens"] / theirs["cpu_s"])
            label = f"data prepare, {workers} worker{'s' * (workers > 1)}"
            yield at_least(f"{label}, per core", *rates, "tok/s", "bare tiktoken", 0.9)
            yield Figure(
                f"{label}, by the clock", ours["said"]["tokens"] / ours["wall_s"], "tok/s",
                theirs=theirs["tokens"] / theirs["wall_s"], against="bare tiktoken",
                value=ours["said"]["tokens"] / ours["wall_s"] * theirs["wall_s"] / theirs["tokens"],
            )  # fmt: skip
        yield from memory(folder, cores, 200_000_000)


def memory(folder: Path, cores: int, size_bytes: int) -> Iterator[Figure]:
    """The largest process at a size and at a tenth of it, as bytes: reading and writing are the same, and quicker."""
    documents = paragraphs(size_bytes // 10)
    small = as_text(folder / "one.txt", documents)
    large = as_text(folder / "ten.txt", documents * 10)
    for workers in sorted({1, cores}):
        peaks = [
            prepared(each, folder / f"{each.stem}-{workers}", workers, "bytes")["peak_bytes"] / 2**20
            for each in (large, small)
        ]
        yield at_most(
            f"data prepare, memory at 10x, {workers} worker{'s' * (workers > 1)}", *peaks, "MiB", "at 1x", 1.1
        )


if __name__ == "__main__":
    for figure in figures(quick="--quick" in sys.argv):
        print(figure.line(), flush=True)
