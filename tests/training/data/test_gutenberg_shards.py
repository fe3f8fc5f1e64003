from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from longctx_bench.core.text_files import read_documents
from longctx_bench.training.data.decontamination import Shingles
from longctx_bench.training.data.gutenberg_shards import ShardWriter, main
from longctx_bench.training.data.gutenberg_text import MIN_CHARACTERS, decode_book, extract_book, is_english, is_free

WORDS = (
    "the",
    "of",
    "and",
    "to",
    *(f"{first}{last}" for first in "bcdfghkl" for last in ("arn", "eel", "ight", "ound")),
)
START = (
    "Title: X\n\n*** START OF THIS PROJECT GUTENBERG EBOOK X, OR\nTHE REST OF ITS NAME ***\n\nProduced by A. Reader\n\n"
)
END = "\n\nEnd of Project Gutenberg's X, by Y\n\n*** END OF THIS PROJECT GUTENBERG EBOOK X ***\n\nlicence\n"
VERSE = "Down by the quiet mill\nThe river ran,\nAnd on the greener hill\nA song began."


def prose(seed: int, paragraphs: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=60)).capitalize() + "." for _ in range(paragraphs)]


def wrapped(paragraph: str, width: int = 70) -> str:
    lines, line = [], ""
    for word in paragraph.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def file_of(paragraphs: list[str]) -> str:
    return START + "\n\n\n".join(map(wrapped, paragraphs)) + END


def test_a_book_is_paragraphs_of_one_line_and_verse() -> None:
    indented = "  I. One\n    II. Two"
    text = START + "\n\n\n".join([*map(wrapped, prose(0)), VERSE, indented]) + END
    assert extract_book(text) == "\n\n".join([*prose(0), VERSE, indented])


def test_the_header_of_the_nineties_goes_too() -> None:
    head = "Project Gutenberg Etext of X\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n"
    tail = "\n\nEnd of the Project Gutenberg Etext of X"
    assert extract_book(head + wrapped(prose(0)[0]) + tail) == prose(0)[0]


def test_each_volume_of_a_file_is_kept() -> None:
    first, second = prose(1), prose(2)
    assert extract_book(file_of(first) + file_of(second)) == "\n\n".join([*first, *second])


def test_what_is_text_free_and_english() -> None:
    assert decode_book(b"\xef\xbb\xbfone\r\ntwo") == "one\ntwo"
    assert decode_book("café".encode("cp1252")) == "café"
    assert decode_book(bytes(64)) is None
    assert is_english("The house of the man and the road to it. " * 20)
    assert not is_english("Das Haus des Mannes und der Weg dorthin sind alt. " * 20)
    assert not is_free("**This is a COPYRIGHTED Project Gutenberg Etext, Details Below**\n")


def test_editions_share_their_runs_of_words() -> None:
    text = " ".join(prose(3))
    shingles = Shingles()
    sample = shingles.of(text, 4)
    assert len(sample) > 100
    assert Shingles().of(wrapped(text.upper()).replace(".", "_;"), 4) == sample
    assert not shingles.of(" ".join(prose(4)), 4) & sample
    assert not shingles.of("too short", 1)


def test_shards_hold_each_new_book_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for seed in range(6):
        (source / f"{seed}.txt").write_text(file_of(prose(seed)), encoding="utf-8")
    (source / "again.txt").write_text("\n" + file_of(prose(0)), encoding="utf-8")
    (source / "copy.txt").write_text(file_of(prose(1)), encoding="utf-8")
    (source / "tiny.txt").write_text("The end.", encoding="utf-8")
    (source / "image.txt").write_bytes(bytes(2 * MIN_CHARACTERS))
    (tmp_path / "known.txt").write_text("\0".join(["other", "\n\n".join(prose(2))]), encoding="utf-8")
    (tmp_path / "held.txt").write_text(" ".join(prose(3)[20:24]), encoding="utf-8")
    options = ["--without", str(tmp_path / "known.txt"), "--held-out", str(tmp_path / "held.txt")]
    assert main([str(source), str(tmp_path / "a"), *options]) == 0
    assert "4 kept" in capsys.readouterr().out
    shards = sorted((tmp_path / "a").glob("*.txt.xz"))
    assert [shard.name for shard in shards] == ["gb0.txt.xz", "gb1.txt.xz"]
    found = {document for shard in shards for document in read_documents(shard)}
    assert found == {"\n\n".join(prose(seed)) for seed in (0, 1, 4, 5)}
    index = dict(line.split("\t")[::3] for line in (tmp_path / "a" / "books.tsv").read_text("utf-8").splitlines())
    assert (index["2.txt"], index["3.txt"], index["tiny.txt"], index["image.txt"]) == (
        *("in a given file", "held out", "tiny", "not text"),
    )
    assert sorted([index["0.txt"], index["again.txt"]])[1] == "twice"
    # A repository of the same files gives the same bytes.
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"]):
        subprocess.run(["git", "-C", str(source), *command], check=True)
    assert main([str(source), str(tmp_path / "b"), *options]) == 0
    for shard in shards:
        assert (tmp_path / "b" / shard.name).read_bytes() == shard.read_bytes()


@pytest.mark.slow
def test_a_shard_never_exceeds_its_size(tmp_path: Path) -> None:
    rng = random.Random(0)
    writer = ShardWriter(tmp_path, 0, 300_000)
    names = [writer.add("".join(rng.choices("abcdefgh ", k=100_000))) for _ in range(12)]
    writer.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(names) == set(sizes)
    assert len(sizes) > 1
    assert max(sizes.values()) <= 300_000


def test_a_source_that_is_not_there_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert "neither a folder nor a git repository" in capsys.readouterr().err
