"""``python -m longctx_bench.training.books SOURCE OUT``: training shards out of Project Gutenberg files.

SOURCE is a folder or a git repository (bare ones too). What comes out is .txt.xz files of documents separated by NUL
bytes, and ``books.tsv``, which says of each file where its book went or why it was dropped.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import random
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.core.text_files import read_documents
from longctx_bench.training.data.decontamination import Shingles, thinned
from longctx_bench.training.data.gutenberg_text import SMALLEST, cleaned, decoded, is_english, is_free

SHARED = 0.25
"""Share of a book's sample found elsewhere from which on it is the same book, or a volume of it."""
HELD_OUT_HITS = 4
"""Of held-out text; with one run in eight sampled, about 45 words in a row. A quoted psalm may cost a book."""
_SAMPLE, _HELD_OUT_SAMPLE = 64, 8
_WRITERS = 2
_BACKLOG = 8


class ShardWriter:
    """Writes every so manieth shard; a shard appears under its name when it is whole."""

    def __init__(self, out: Path, first: int, most: int, preset: int = 6) -> None:
        self._out, self._index, self._most, self._preset = out, first, most, preset
        self._packer: lzma.LZMACompressor | None = None
        self._bytes = 0

    @property
    def _name(self) -> str:
        return f"gb{self._index}.txt.xz"

    def add(self, document: str) -> str:
        """Append a document; return its shard's name."""
        data = document.encode("utf-8")
        # The compressor keeps up to 64 KiB back, and no English text needs half of its bytes.
        if self._packer and self._bytes + len(data) // 2 + (1 << 17) > self._most:
            self.close()
            self._index += _WRITERS
        if self._packer is None:
            self._packer, self._bytes = lzma.LZMACompressor(preset=self._preset), 0
            self._part.unlink(missing_ok=True)
        else:
            data = b"\0" + data
        self._write(self._packer.compress(data))
        return self._name

    def close(self) -> str:
        """Finish the shard under way; return its name."""
        if self._packer is not None:
            self._write(self._packer.flush())
            self._part.rename(self._out / self._name)
            self._packer = None
        return self._name

    @property
    def _part(self) -> Path:
        return self._out / f"{self._name}.part"

    def _write(self, data: bytes) -> None:
        with self._part.open("ab") as stream:
            stream.write(data)
        self._bytes += len(data)


class Sieve:
    """Decides which books are new English books."""

    def __init__(self, without: Sequence[Path], held_out: Sequence[Path]) -> None:
        self._shingles = Shingles()
        self._known = self._shingles.of_all(chain.from_iterable(map(read_documents, without)), _SAMPLE)
        self._held_out = self._shingles.of_all(chain.from_iterable(map(read_documents, held_out)), _HELD_OUT_SAMPLE)
        self._taken: set[int] = set()
        self._files: set[bytes] = set()

    def judged(self, data: bytes) -> tuple[str, str, float]:
        """Return a file's book, or "" for one to drop; why it is dropped; and what share of it was known."""
        digest = hashlib.blake2b(data).digest()
        if digest in self._files:
            return "", "twice", 1.0
        self._files.add(digest)
        book, why = _book(data)
        if why:
            return "", why, 0.0
        fine = self._shingles.of(book, _HELD_OUT_SAMPLE)
        forbidden = len(fine & self._held_out)
        if forbidden >= HELD_OUT_HITS:
            return "", "held out", forbidden / len(fine)
        sample = thinned(fine, _SAMPLE)
        shares = {
            "in a given file": len(sample & self._known) / max(1, len(sample)),
            "twice": len(sample & self._taken) / max(1, len(sample)),
        }
        for why, share in shares.items():
            if share >= SHARED:
                return "", why, share
        self._taken |= sample
        return book, "", max(shares.values())


def _book(data: bytes) -> tuple[str, str]:
    """Return a file's book, and why it is none of use."""
    text = decoded(data)
    if text is None:
        return "", "not text"
    if not is_free(text):
        return "", "copyrighted"
    book = cleaned(text)
    if len(book) < SMALLEST:
        return "", "tiny"
    return book, "" if is_english(book) else "not English"


def source_files(source: Path, seed: int) -> list[tuple[str, str]]:
    """Return the name and address of each file, shuffled, so that each shard mixes authors.

    Raises:
        UserError: there is no folder.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no folder and no git repository")
    if _is_git(source):
        listing = _git(source, "ls-tree", "-r", "-z", "HEAD").stdout.decode("utf-8", errors="replace")
        rows = (entry.split("\t", 1) for entry in listing.split("\0") if entry)
        found = [(name, head.split(" ")[2]) for head, name in rows if " blob " in head and name.endswith(".txt")]
    else:
        found = [(str(file.relative_to(source)), str(file)) for file in source.rglob("*.txt") if file.is_file()]
    found.sort()
    random.Random(seed).shuffle(found)
    return found


def _is_git(source: Path) -> bool:
    return (source / "HEAD").is_file() or (source / ".git").exists()


def _git(source: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(source), *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        raise UserError(f"{source}: git {arguments[0]}: {said.decode(errors='replace').strip()}") from error


def _contents(source: Path, addresses: Sequence[str]) -> Iterator[bytes]:
    if not _is_git(source):
        yield from (Path(address).read_bytes() for address in addresses)
        return
    # One git process for all: starting one for each of thousands of files takes longer than reading them.
    command = ["git", "-C", str(source), "cat-file", "--batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as git:
        assert git.stdin is not None
        assert git.stdout is not None
        for address in addresses:
            git.stdin.write(f"{address}\n".encode())
            git.stdin.flush()
            head = git.stdout.readline().split()
            # A snapshot may lack its largest files.
            yield git.stdout.read(int(head[2]) + 1)[:-1] if head[-1].isdigit() else b""
        git.stdin.close()


def write_shards(source: Path, out: Path, sieve: Sieve, most: int, seed: int, preset: int = 6) -> Counter[str]:
    """Write the shards and ``books.tsv``; return how many books went where and how many characters are in all.

    Raises:
        UserError: the source cannot be read, or the shards cannot be written.
    """
    files = source_files(source, seed)
    out.mkdir(parents=True, exist_ok=True)
    writers = [ShardWriter(out, number, most, preset) for number in range(_WRITERS)]
    written = [0] * _WRITERS
    counts: Counter[str] = Counter()
    rows: list[tuple[str, int, float, str | Future[str]]] = []
    # lzma lets go of the interpreter's lock: threads suffice, one a writer so that its documents keep their order.
    pools = [ThreadPoolExecutor(1) for _ in range(_WRITERS)]
    waiting: deque[Future[str]] = deque()
    try:
        for (name, _), data in zip(files, _contents(source, [address for _, address in files]), strict=True):
            book, why, share = sieve.judged(data)
            counts[why or "kept"] += 1
            counts["characters"] += len(book)
            if not book:
                rows.append((name, 0, share, why))
                continue
            number = written.index(min(written))
            written[number] += len(book)
            waiting.append(pools[number].submit(writers[number].add, book))
            rows.append((name, len(book), share, waiting[-1]))
            while len(waiting) > _BACKLOG:
                waiting.popleft().result()
        for pool, writer in zip(pools, writers, strict=True):
            waiting.append(pool.submit(writer.close))
        for each in waiting:
            each.result()
    except OSError as error:
        raise UserError(f"{out}: cannot write the shards: {error}") from error
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
    with (out / "books.tsv").open("w", encoding="utf-8", errors="replace") as stream:
        stream.write("file\tcharacters\tshare known\twhere or why not\n")
        for name, size, share, where in rows:
            place = where if isinstance(where, str) else where.result()
            stream.write(f"{' '.join(name.split())}\t{size}\t{share:.3f}\t{place}\n")
    return counts


def main(arguments: list[str]) -> int:
    """Write the shards that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m longctx_bench.training.books", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of .txt files, or git repository")
    parser.add_argument("out", type=Path, help="folder for the shards")
    parser.add_argument("--without", type=Path, nargs="+", default=[], help="files whose books to leave out")
    parser.add_argument("--held-out", type=Path, nargs="+", default=[], help="files of which no passage may appear")
    parser.add_argument("--shard-bytes", type=int, default=15_500_000, help="most bytes of a compressed shard")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the books")
    parser.add_argument("--preset", type=int, choices=range(10), default=6, help="of xz; 1 is 5 times as fast as 6")
    chosen = parser.parse_args(arguments)
    try:
        sieve = Sieve(chosen.without, chosen.held_out)
        counts = write_shards(chosen.source, chosen.out, sieve, chosen.shard_bytes, chosen.seed, chosen.preset)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{count:,} {name}" for name, count in counts.most_common()))
    return 0
