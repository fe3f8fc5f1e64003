"""Bundles: the results of a folder in one file, about a tenth of the size or less.

A bundle is an xz stream. Its first line is a manifest in JSON, and the contents of the files that it names follow, in
its order and with nothing in between::

    {"bundle_version": 1, "without_texts": false, "files": [{"path": ..., "size": ..., "sha256": ...}, ...]}

It holds what reports and further runs read of a folder: cells, records, timings, prompt excerpts and certificates.
Files of one name lie together, sorted so that a task's records by different methods, which share prompts and
references, follow each other. The same folder always gives the same bytes.

Bundles are not trusted. They are read through a scratch folder: only paths that a run writes, each once, of the size
and digest in the manifest, and no more in all than is plausible for compressed text.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
from msgspec import Meta

from longctx_bench.benchmarks import BENCHMARKS
from longctx_bench.core.decompression import BoundedDecompressor, max_decompressed_size
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import atomic_write, make_folder, sync_folder, write_error
from longctx_bench.core.temp_dirs import ScratchFolder
from longctx_bench.core.types import NATURAL, length_name
from longctx_bench.core.untrusted_files import (
    MAX_JSON_BYTES,
    UnreadableFile,
    open_regular_file,
    parse_line,
    parse_object,
    read_content,
    read_line_blocks,
)
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import UnsupportedVersionError, upgrade

BUNDLE_SUFFIX = ".bundle"
BUNDLE_VERSION = 1
_CELL_FILES = ("cell.json", "records.jsonl", "started.json", "timings.jsonl")
_FOLDERS = ("parity", "prompts", "runs")
_MAGIC = b"\xfd7zXZ\0"
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "nice_len": 273, "lc": 4, "pb": 0}]
"""Long matches and no alignment, as suits text; the dictionary of 8 MiB spans the records of a task."""
_MEMORY = 64 << 20
"""Bytes that decompression may take: six times what :data:`_FILTERS` needs."""
_BLOCK = 1 << 20
_NAME, _LENGTH = r"(?!\.)[A-Za-z0-9._@=+~-]{1,255}", f"(?:[0-9]{{1,20}}|{length_name(NATURAL)})"
_PATH = re.compile(
    rf"runs/(?:{_NAME}/){{3}}{_LENGTH}/(?:{'|'.join(map(re.escape, _CELL_FILES))})"
    rf"|prompts/(?:{_NAME}/){{2}}{_LENGTH}\.jsonl|parity/{_NAME}\.json"
)
"""The paths that a run or ``parity`` writes and reports read."""


class BundledFile(msgspec.Struct, frozen=True):
    """A file of the results folder."""

    path: str
    """Relative to the folder, with ``/`` between its parts."""
    size: Annotated[int, Meta(ge=0, le=2**53)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a bundle."""

    bundle_version: int
    without_texts: bool = False
    """Whether texts out of data sets were left out (:func:`pack`)."""
    files: list[BundledFile]

    @property
    def num_cells(self) -> int:
        """Number of cells, finished or not."""
        return len({file.path.rpartition("/")[0] for file in self.files if file.path.startswith("runs/")})

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(file.size for file in self.files)


class _Version(msgspec.Struct):
    bundle_version: int


@dataclass(frozen=True)
class _Source:
    """A file to be packed."""

    path: str
    """In the bundle."""
    file: Path
    edit: Callable[[bytes], bytes] | None = None
    """Applied to blocks of whole lines."""


class _BundleStore(ResultStore):
    """The results of a bundle, read from a scratch folder that lives as long as this object."""

    def __init__(self, bundle: Path, scratch: ScratchFolder) -> None:
        super().__init__(scratch.folder)
        self.folder = bundle
        self._scratch = scratch


def open_store(path: Path) -> ResultStore:
    """Return the results of a folder, which need not exist, or of a bundle, for reading.

    Raises:
        UserError: a file that is not a bundle, is damaged, or was written by a later version.
    """
    if not path.is_file():
        return ResultStore(path)
    try:
        scratch = ScratchFolder("longctx-bench-bundle-")
    except OSError as error:
        raise UserError(f"{path}: cannot be unpacked for reading: {error.strerror}; set TMPDIR") from error
    _extract(path, scratch.folder)
    return _BundleStore(path, scratch)


def companion_folder(path: Path) -> Path:
    """Return where figures and probes of these results lie: the folder itself, or one named like the bundle."""
    return path.with_suffix("") if path.is_file() else path


def bundle_hint(folder: Path) -> str | None:
    """Return advice where a folder without results holds bundles, or was packed into one; else None."""
    packed = default_bundle(folder)
    bundles = [packed] if packed.is_file() else sorted(folder.glob(f"*{BUNDLE_SUFFIX}"))
    if not bundles:
        return None
    return f"give {'the bundle' if len(bundles) == 1 else 'one of its bundles, such as'} {bundles[0]}"


def default_bundle(folder: Path) -> Path:
    """Return the path of a folder's bundle: next to it, with :data:`BUNDLE_SUFFIX` after its name."""
    named = folder if folder.name not in {"", ".."} else folder.resolve()
    return named.with_name(named.name + BUNDLE_SUFFIX)


def pack(folder: Path, bundle: Path, *, overwrite: bool = False, without_texts: bool = False) -> Manifest:
    """Pack a results folder into one file; nothing of the folder changes.

    Args:
        folder: the run's folder.
        bundle: the file to write, with the suffix :data:`BUNDLE_SUFFIX`.
        overwrite: replace an existing file.
        without_texts: leave out what may be other people's text: prompt excerpts, and the references of benchmarks
            that take them from a data set, of which each record keeps the SHA-256 instead. No score depends on them,
            and the examples' hashes, which say which prompts and references are identical, stay.

    Raises:
        UserError: the folder holds no results, cannot be read or changes meanwhile, or the file exists or cannot be
            written.
    """
    if bundle.suffix != BUNDLE_SUFFIX:
        raise UserError(f"--out {bundle}: must end in {BUNDLE_SUFFIX}")
    if bundle.is_dir() or (bundle.exists() and not overwrite):
        raise UserError(f"{bundle}: exists; choose another with --out, or replace it with --overwrite")
    sources = _sources(ResultStore(folder), without_texts)
    manifest = Manifest(
        bundle_version=BUNDLE_VERSION, without_texts=without_texts, files=[_described(source) for source in sources]
    )
    line = msgspec.json.encode(manifest) + b"\n"
    if len(line) > MAX_JSON_BYTES:
        raise UserError(f"{folder}: has too many cells for one bundle ({manifest.num_cells:,})")
    with atomic_write(bundle) as temporary:
        with lzma.open(temporary, "wb", format=lzma.FORMAT_XZ, filters=_FILTERS) as packed:
            packed.write(line)
            for source, file in zip(sources, manifest.files, strict=True):
                digest = hashlib.sha256()
                for block in _content(source):
                    digest.update(block)
                    packed.write(block)
                if digest.hexdigest() != file.sha256:
                    raise UserError(f"{source.file}: changed while it was packed; wait for the run and pack again")
        # What cannot be read back, by the limits for foreign files, must not take the place of the folder.
        _read_bundle(temporary, lambda file, blocks: None)
    return manifest


def unpack(bundle: Path, folder: Path) -> Manifest:
    """Unpack a bundle; runs resume in the folder as in the original.

    Args:
        bundle: the file.
        folder: need not exist; what it holds besides results stays.

    Raises:
        UserError: not a bundle, damaged, or of a later version; the folder holds results already or cannot be written.
    """
    present = [name for name in _FOLDERS if (folder / name).exists()]
    if present:
        raise UserError(f"{folder}: already holds {present[0]}/; choose another folder with --out")
    try:
        make_folder(folder.parent)
        with ScratchFolder(".unpacking-", folder.parent) as scratch:
            manifest = _extract(bundle, scratch)
            make_folder(folder)
            # Cells last: with them, the folder counts as a run's.
            for name in _FOLDERS:
                if (scratch / name).exists():
                    (scratch / name).replace(folder / name)
            sync_folder(folder)
    except OSError as error:
        raise write_error(folder, error, "choose another folder with --out") from error
    return manifest


def _sources(store: ResultStore, without_texts: bool) -> list[_Source]:
    """Return the files to pack, in the order of the bundle."""
    cells = store.folders()
    if not cells:
        what = "holds no results" if store.folder.is_dir() else "no such folder"
        raise UserError(f"{store.folder}: {what}; give the folder that a run wrote")
    files = [file for cell in cells for file in map(cell.joinpath, _CELL_FILES) if file.exists()]
    files += (store.folder / "parity").glob("*.json")
    if not without_texts:
        files += (store.folder / "prompts").glob("*/*/*.jsonl")
    edited = {cell / "records.jsonl" for cell in cells if without_texts and _has_foreign_references(cell)}
    sources = []
    for file in files:
        path = file.relative_to(store.folder).as_posix()
        if not _PATH.fullmatch(path):
            raise UserError(f"{file}: has a name that no run writes; rename or remove it")
        sources.append(_Source(path, file, _without_references if file in edited else None))
    return sorted(sources, key=lambda source: _order(source.path))


def _order(path: str) -> tuple[str, ...]:
    """Return the sort key of a path: files of one name, task and length lie together."""
    kind, *parts = path.split("/")
    if kind != "runs":
        return (kind, *parts)
    model, method, task, length, name = parts
    return name, task, length.zfill(20), model, method


def _has_foreign_references(cell: Path) -> bool:
    """Whether a cell's references may be other people's text, as they are where its benchmark is not known here."""
    for name in ("cell.json", "started.json"):
        with suppress(FileNotFoundError, UnreadableFile, UnsupportedVersionError, KeyError, TypeError):
            benchmark = upgrade(parse_object(read_content(cell / name)))["spec"]["task"]["benchmark"]
            # Plug-ins are not asked: results do not choose what is imported.
            return benchmark not in BENCHMARKS.shipped or BENCHMARKS[benchmark].references_from_data
    return True


def _without_references(lines: bytes) -> bytes:
    """Replace the references in some lines of ``records.jsonl`` by their digests."""
    whole = lines.removesuffix(b"\n")
    return b"\n".join(map(_without_reference, whole.split(b"\n"))) + lines[len(whole) :]


def _without_reference(line: bytes) -> bytes:
    record = parse_line(line)
    references = record.get("references", []) if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(references, list):
        raise UnreadableFile("has a damaged line; repeat the run that wrote it, or delete its folder")
    if not references:
        return line
    digests = [hashlib.sha256(str(reference).encode()).hexdigest() for reference in references]
    edited: dict[str, Any] = {}
    for key, value in record.items():
        edited |= {key: value} if key != "references" else {"references_sha256": digests}
    return json.dumps(edited).encode()


def _content(source: _Source) -> Iterator[bytes]:
    """Yield a file as it is packed, in blocks.

    Raises:
        UserError: it cannot be read.
    """
    try:
        for block in read_line_blocks(source.file):
            yield source.edit(block) if source.edit else block
    except FileNotFoundError as error:
        raise UserError(f"{source.file}: was removed while it was packed") from error
    except UnreadableFile as error:
        raise UserError(f"{source.file}: {error}") from error


def _described(source: _Source) -> BundledFile:
    digest, size = hashlib.sha256(), 0
    for block in _content(source):
        digest.update(block)
        size += len(block)
    return BundledFile(source.path, size, digest.hexdigest())


def _extract(bundle: Path, folder: Path) -> Manifest:
    """Write the files of a bundle below a folder; raises as :func:`_read_bundle`, also where they cannot be written."""

    def write(file: BundledFile, blocks: Iterator[bytes]) -> None:
        target = folder / file.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Never over another file, whatever the file system takes for the same name.
            with target.open("xb") as opened:
                opened.writelines(blocks)
        except OSError as error:
            raise write_error(target, error, "unpack where there is room for it") from error

    return _read_bundle(bundle, write)


def _read_bundle(bundle: Path, take: Callable[[BundledFile, Iterator[bytes]], None]) -> Manifest:
    """Read a bundle from its beginning to its end and check all of it.

    Args:
        bundle: the file.
        take: called for each file with its content in blocks, which it may leave unread.

    Raises:
        UserError: not a bundle, damaged, implausibly large, or of a later version.
    """
    try:
        with open_regular_file(bundle) as raw:
            packed_size = raw.seek(0, io.SEEK_END)
            raw.seek(0)
            if raw.read(len(_MAGIC)) != _MAGIC:
                raise UnreadableFile("is not a bundle; give a run's folder, or what `longctx-bench pack` wrote")
            raw.seek(0)
            stream = io.BufferedReader(BoundedDecompressor(_XzStream(raw), packed_size, str(bundle)), _BLOCK)
            manifest = _parse_manifest(stream.readline(MAX_JSON_BYTES + 1), packed_size)
            for file in manifest.files:
                blocks = _file_blocks(stream, file)
                take(file, blocks)
                for _ in blocks:
                    pass
            if stream.read(1):
                raise UnreadableFile("is damaged (it holds more than its manifest names)")
    except FileNotFoundError as error:
        raise UserError(f"{bundle}: no such file") from error
    except UnreadableFile as error:
        raise UserError(f"{bundle}: {error}") from error
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{bundle}: is damaged ({error}); fetch or pack it again") from error
    return manifest


def _parse_manifest(line: bytes, packed_size: int) -> Manifest:
    """Return a bundle's manifest.

    Raises:
        UnreadableFile: there is none, a later version wrote it, or it names what no bundle holds.
    """
    try:
        version = msgspec.json.decode(line, type=_Version).bundle_version
        if version != BUNDLE_VERSION:
            raise UnreadableFile(
                f"is a bundle of version {version}, this longctx-bench reads version {BUNDLE_VERSION}; update it"
            )
        manifest = msgspec.json.decode(line, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"is not a bundle, its first line is no manifest ({error})") from error
    paths = [file.path for file in manifest.files]
    foreign = next((path for path in paths if not _PATH.fullmatch(path)), None)
    if foreign is not None:
        raise UnreadableFile(f"is damaged (its manifest names {foreign!a:.80}, which no run writes)")
    if len(set(paths)) < len(paths):
        raise UnreadableFile("is damaged (its manifest names a file twice)")
    if manifest.size > max_decompressed_size(packed_size):
        raise UnreadableFile(f"says that it unpacks to {manifest.size >> 20:,} MiB, which is implausible for text")
    return manifest


def _file_blocks(stream: BinaryIO, file: BundledFile) -> Iterator[bytes]:
    """Yield a file of the bundle in blocks; raise UnreadableFile at its end if it is not what the manifest says."""
    digest, left = hashlib.sha256(), file.size
    while left:
        block = stream.read(min(left, _BLOCK))
        if not block:
            raise UnreadableFile(f"is damaged (it ends within {file.path})")
        digest.update(block)
        left -= len(block)
        yield block
    if digest.hexdigest() != file.sha256:
        raise UnreadableFile(f"is damaged ({file.path} has another digest than in the manifest)")


class _XzStream:
    """The content of an xz file, decompressed within :data:`_MEMORY`.

    Raises:
        EOFError: while reading, where the file is truncated.
        lzma.LZMAError: while reading, where it is damaged, or something follows the stream.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY)

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        while not self._decoder.eof:
            packed = self._file.read(_BLOCK) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not packed:
                raise EOFError("it is truncated")
            if content := self._decoder.decompress(packed, size):
                return content
        if self._decoder.unused_data or self._file.read(1):
            raise lzma.LZMAError("something follows its end")
        return b""
