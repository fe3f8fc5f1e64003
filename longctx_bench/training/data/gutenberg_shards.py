"""Training shards from Project Gutenberg files: ``python -m longctx_bench.training.books SOURCE OUT``.

SOURCE is a folder or a git repository, bare ones included. The output is .txt.xz files of documents separated by NUL
bytes, and ``books.tsv``, which lists for each input file the shard of its book or why it was dropped.
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
from longctx_bench.training.data.gutenberg_text import MIN_CHARACTERS, decode_book, extract_book, is_english, is_free

SHARED = 0.25
"""A book with at least this share of its sampled shingles in another one is a duplicate, or a volume of it."""
HELD_OUT_HITS = 4
"""A book with this many held-out shingles is dropped: about 45 words in a row. A quoted psalm may suffice."""
_SAMPLE, _HELD_OUT_SAMPLE = 64, 8
"""One shingle in this many is compared, between books and with held-out text."""
_WRITERS = 2
_MAX_PENDING = 8


class ShardWriter:
    """Writes every ``_WRITERS``-th shard; a shard gets its final name when it is complete."""

    def __init__(self, out: Path, first: int, max_bytes: int, preset: int = 6) -> None:
        self._out, self._index, self._max_bytes, self._preset = out, first, max_bytes, preset
        self._compressor: lzma.LZMACompressor | None = None
        self._bytes = 0

    @property
    def _name(self) -> str:
        return f"gb{self._index}.txt.xz"

    def add(self, document: str) -> str:
        """Append a document and return the name of its shard."""
        data = document.encode("utf-8")
        # The compressor buffers up to 64 KiB, and English text compresses to less than half.
        if self._compressor and self._bytes + len(data) // 2 + (1 << 17) > self._max_bytes:
            self.close()
            self._index += _WRITERS
        if self._compressor is None:
            self._compressor, self._bytes = lzma.LZMACompressor(preset=self._preset), 0
            self._part.unlink(missing_ok=True)
        else:
            data = b"\0" + data
        self._write(self._compressor.compress(data))
        return self._name

    def close(self) -> str:
        """Finish the current shard and return its name."""
        if self._compressor is not None:
            self._write(self._compressor.flush())
            self._part.rename(self._out / self._name)
            self._compressor = None
        return self._name

    @property
    def _part(self) -> Path:
        return self._out / f"{self._name}.part"

    def _write(self, data: bytes) -> None:
        with self._part.open("ab") as stream:
            stream.write(data)
        self._bytes += len(data)


class BookFilter:
    """Keeps English books that are not known yet and do not contain held-out text."""

    def __init__(self, without: Sequence[Path], held_out: Sequence[Path]) -> None:
        self._shingles = Shingles()
        self._known = self._shingles.of_all(chain.from_iterable(map(read_documents, without)), _SAMPLE)
        self._held_out = self._shingles.of_all(chain.from_iterable(map(read_documents, held_out)), _HELD_OUT_SAMPLE)
        self._kept: set[int] = set()
        self._files: set[bytes] = set()

    def judge(self, data: bytes) -> tuple[str, str, float]:
        """Return a file's book ("" if dropped), the reason for dropping it, and the share of it that was known."""
        digest = hashlib.blake2b(data).digest()
        if digest in self._files:
            return "", "twice", 1.0
        self._files.add(digest)
        book, reason = _book(data)
        if reason:
            return "", reason, 0.0
        shingles = self._shingles.of(book, _HELD_OUT_SAMPLE)
        num_held_out = len(shingles & self._held_out)
        if num_held_out >= HELD_OUT_HITS:
            return "", "held out", num_held_out / len(shingles)
        sample = thinned(shingles, _SAMPLE)
        shares = {
            "in a given file": len(sample & self._known) / max(1, len(sample)),
            "twice": len(sample & self._kept) / max(1, len(sample)),
        }
        for reason, share in shares.items():
            if share >= SHARED:
                return "", reason, share
        self._kept |= sample
        return book, "", max(shares.values())


def _book(data: bytes) -> tuple[str, str]:
    """Return a file's book, and the reason for dropping it ("" if there is none)."""
    text = decode_book(data)
    if text is None:
        return "", "not text"
    if not is_free(text):
        return "", "copyrighted"
    book = extract_book(text)
    if len(book) < MIN_CHARACTERS:
        return "", "tiny"
    return book, "" if is_english(book) else "not English"


def source_files(source: Path, seed: int) -> list[tuple[str, str]]:
    """Return the name and address (path or git object) of each file, shuffled so that each shard mixes authors.

    Raises:
        UserError: the source is not a folder, or git cannot list it.
    """
    if not source.is_dir():
        raise UserError(f"{source}: neither a folder nor a git repository")
    if _is_git(source):
        listing = _git(source, "ls-tree", "-r", "-z", "HEAD").stdout.decode("utf-8", errors="replace")
        rows = (entry.split("\t", 1) for entry in listing.split("\0") if entry)
        files = [(name, head.split(" ")[2]) for head, name in rows if " blob " in head and name.endswith(".txt")]
    else:
        files = [(str(file.relative_to(source)), str(file)) for file in source.rglob("*.txt") if file.is_file()]
    files.sort()
    random.Random(seed).shuffle(files)
    return files


def _is_git(source: Path) -> bool:
    return (source / "HEAD").is_file() or (source / ".git").exists()


def _git(source: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(source), *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", b"") or str(error).encode()
        raise UserError(f"{source}: git {arguments[0]}: {message.decode(errors='replace').strip()}") from error


def _contents(source: Path, addresses: Sequence[str]) -> Iterator[bytes]:
    if not _is_git(source):
        yield from (Path(address).read_bytes() for address in addresses)
        return
    # One git process for all files: starting thousands takes longer than reading them.
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


def write_shards(
    source: Path, out: Path, book_filter: BookFilter, max_bytes: int, seed: int, preset: int = 6
) -> Counter[str]:
    """Write the shards and ``books.tsv``; return the number of books by outcome, and of characters kept.

    Raises:
        UserError: the source cannot be read, or the shards cannot be written.
    """
    files = source_files(source, seed)
    out.mkdir(parents=True, exist_ok=True)
    writers = [ShardWriter(out, number, max_bytes, preset) for number in range(_WRITERS)]
    characters_by_writer = [0] * _WRITERS
    counts: Counter[str] = Counter()
    rows: list[tuple[str, int, float, str | Future[str]]] = []
    # Threads suffice, as lzma releases the GIL; one per writer, so that its documents keep their order.
    pools = [ThreadPoolExecutor(1) for _ in range(_WRITERS)]
    pending: deque[Future[str]] = deque()
    try:
        for (name, _), data in zip(files, _contents(source, [address for _, address in files]), strict=True):
            book, reason, share = book_filter.judge(data)
            counts[reason or "kept"] += 1
            counts["characters"] += len(book)
            if not book:
                rows.append((name, 0, share, reason))
                continue
            number = characters_by_writer.index(min(characters_by_writer))
            characters_by_writer[number] += len(book)
            pending.append(pools[number].submit(writers[number].add, book))
            rows.append((name, len(book), share, pending[-1]))
            while len(pending) > _MAX_PENDING:
                pending.popleft().result()
        for pool, writer in zip(pools, writers, strict=True):
            pending.append(pool.submit(writer.close))
        for future in pending:
            future.result()
    except OSError as error:
        raise UserError(f"{out}: cannot write the shards: {error}") from error
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
    with (out / "books.tsv").open("w", encoding="utf-8", errors="replace") as stream:
        stream.write("file\tcharacters\tshare known\twhere or why not\n")
        for name, size, share, outcome in rows:
            shard_or_reason = outcome if isinstance(outcome, str) else outcome.result()
            stream.write(f"{' '.join(name.split())}\t{size}\t{share:.3f}\t{shard_or_reason}\n")
    return counts


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m longctx_bench.training.books", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of .txt files, or git repository")
    parser.add_argument("out", type=Path, help="folder for the shards")
    parser.add_argument("--without", type=Path, nargs="+", default=[], help="files whose books are left out")
    parser.add_argument("--held-out", type=Path, nargs="+", default=[], help="files of which no passage may appear")
    parser.add_argument("--shard-bytes", type=int, default=15_500_000, help="maximum bytes of a compressed shard")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the books")
    parser.add_argument("--preset", type=int, choices=range(10), default=6, help="xz preset; 1 is 5 times as fast as 6")
    options = parser.parse_args(arguments)
    try:
        book_filter = BookFilter(options.without, options.held_out)
        counts = write_shards(
            options.source, options.out, book_filter, options.shard_bytes, options.seed, options.preset
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{count:,} {name}" for name, count in counts.most_common()))
    return 0
