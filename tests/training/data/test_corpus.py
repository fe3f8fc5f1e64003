from __future__ import annotations

import json
import lzma
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.core.file_cache import made_once
from longctx_bench.core.text_files import read_documents
from longctx_bench.training.data.corpus import files
from longctx_bench.training.data.sequence_packing import Batches, PackedText, RetrievalPool
from longctx_bench.training.data.token_cache import token_arrays
from longctx_bench.training.recipe import TextSource


def test_documents_of_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.txt").write_text("one\0two", encoding="utf-8")
    with lzma.open(tmp_path / "b.txt.xz", "wt", encoding="utf-8") as stream:
        stream.write("three\0\0four")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "five"}) + "\n\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["six"]}), tmp_path / "d.parquet")
    found = files(TextSource(path="."), tmp_path)
    assert [text for file in found for text in read_documents(file)] == [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "empty file"),
        ("nothing.txt", b"\0\0 \n", "holds no text"),
        ("image.txt", b"\x89PNG\xff\xfe", "not UTF-8 text"),
        ("program.txt", bytes(range(1, 7)) * 100, "binary file"),
        ("row.jsonl", b'{"body": "x"}\n', "no text under 'text'"),
        ("row2.jsonl", b"{\n", "line 1: not JSON"),
        ("table.parquet", b"no", "not a readable parquet file"),
        ("damaged.txt.xz", b"no", "damaged .xz"),
        ("picture.png", b"x", "not a known kind of text"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        [list(read_documents(file)) for file in files(TextSource(path=name), tmp_path)]


def test_a_missing_corpus_says_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--set corpus=FOLDER"):
        files(TextSource(path="absent/*.txt"), tmp_path)


def test_tokens_are_made_once_with_an_end_after_each_document(
    corpus: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = [TextSource(path="train.txt")]
    (first,) = token_arrays(source, corpus, tokenizer, 0, tmp_path)
    monkeypatch.setattr("longctx_bench.training.data.token_cache._write", None)
    (again,) = token_arrays(source, corpus, tokenizer, 0, tmp_path)
    assert np.array_equal(first, again)
    assert int((first == tokenizer.eos_token_id).sum()) == 4
    text = tokenizer.decode(first.tolist()).replace(tokenizer.eos_token, "\0")
    assert text.rstrip("\0") == (corpus / "train.txt").read_text(encoding="utf-8")


def test_files_tokenised_at_the_same_time_keep_their_order_and_bytes(
    corpus: Path, tokenizer: Any, tmp_path: Path, prose: Callable[[int, int], str]
) -> None:
    texts = [prose(seed, 5 + seed) for seed in range(7)]
    for number, text in enumerate([*texts, texts[0]]):  # the last is a second copy of the first
        (tmp_path / f"{number}.txt").write_text(f"{text}\0{text[:40]}", encoding="utf-8")
    cache = tmp_path / "cache"
    arrays = token_arrays([TextSource(path="*.txt")], tmp_path, tokenizer, 0, cache)
    for text, array in zip([*texts, texts[0]], arrays, strict=True):
        ids = [
            token
            for document in (text, text[:40])
            for token in [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
        ]
        assert array.dtype == np.uint16
        assert array.tolist() == ids
    assert len(list(cache.glob("*.npy"))) == 7


@pytest.mark.parametrize("damage", ["cut off", "flipped", "without digests"])
def test_damaged_tokens_are_named_and_made_again(
    corpus: Path, tokenizer: Any, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = [TextSource(path="train.txt")]
    (first,) = token_arrays(source, corpus, tokenizer, 0, tmp_path)
    before = np.array(first)
    (file,) = tmp_path.glob("*.npy")
    content = file.read_bytes()
    if damage == "without digests":
        # As an earlier version left it: whether it is whole, nobody knows.
        file.with_name(f"{file.name}.digests.json").unlink()
    else:
        file.write_bytes(content[:-5] if damage == "cut off" else content[:-1] + bytes([content[-1] ^ 1]))
    (again,) = token_arrays(source, corpus, tokenizer, 0, tmp_path)
    assert np.array_equal(before, again)
    assert file.read_bytes() == content
    [said] = [record.getMessage() for record in caplog.records if record.name == "longctx_bench"]
    assert said.startswith(f"{file}: ")


def test_what_a_killed_tokenisation_left_goes_with_the_next(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=_killed_while_it_tokenises, args=(tmp_path,))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    left = list(tmp_path.glob(".making-*/made*"))
    assert left, "the test means nothing unless something was left"
    token_arrays([TextSource(path="train.txt")], corpus, tokenizer, 0, tmp_path)
    assert not list(tmp_path.glob(".making-*"))


def _killed_while_it_tokenises(folder: Path) -> None:
    def make(made: Path) -> None:
        made.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    made_once(folder / "tokens.npy", make)


def test_a_full_disk_is_one_clear_line(
    corpus: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(UserError, match=r"No space left on device .* LONGCTX_BENCH_CACHE"):
        token_arrays([TextSource(path="train.txt")], corpus, tokenizer, 0, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_rows_predict_every_token_once() -> None:
    text = PackedText([np.arange(0, 21, dtype=np.uint16), np.arange(100, 113, dtype=np.uint16)], 4)
    assert len(text) == 8
    targets = np.concatenate([text.row(index)[1:] for index in range(len(text))])
    assert targets.tolist() == [*range(1, 21), *range(101, 113)]


def test_a_step_is_a_function_of_seed_and_index() -> None:
    text = PackedText([np.arange(0, 81, dtype=np.uint16)], 4)
    pool = RetrievalPool(np.full((3, 5), 999, dtype=np.uint16), np.zeros((3, 5), dtype=np.bool_), np.ones(3, np.uint8))
    batches = Batches(text, 4, seed=0, pool=pool, retrieval_share=0.5)
    whole = [batches.step(index) for index in range(40)]
    fresh = Batches(text, 4, seed=0, pool=pool, retrieval_share=0.5)
    assert np.array_equal(fresh.step(7), whole[7])
    assert np.array_equal(np.concatenate([fresh.step(7, 0, 2), fresh.step(7, 2, 2)]), whole[7])
    share = np.mean([row[0] == 999 for step in whole for row in step])
    assert 0.35 < share < 0.65
    plain = Batches(text, 4, seed=0)
    epoch = np.concatenate([plain.step(index)[:, 0] for index in range(5)])
    assert sorted(epoch.tolist()) == list(range(0, 80, 4))


def test_each_draw_of_an_exercise_has_other_digits() -> None:
    text = PackedText([np.arange(20, 101, dtype=np.uint16)], 4)
    pool = RetrievalPool(np.array([[1, 2, 15, 1, 3]], dtype=np.uint16), np.zeros((1, 5), dtype=np.bool_), np.array([1]))
    batches = Batches(text, 4, seed=0, pool=pool, retrieval_share=0.999, digits=range(10))
    rows = [row.tolist() for index in range(20) for row in batches.step(index) if row[2] == 15]
    assert all(row[0] == row[3] and len({row[0], row[1], row[4]}) == 3 and max(row[0], row[1]) < 10 for row in rows)
    assert len({tuple(row) for row in rows}) > 40
    fresh = Batches(text, 4, seed=0, pool=pool, retrieval_share=0.999, digits=range(10))
    assert np.array_equal(fresh.step(3, 1, 2), batches.step(3)[1:3])


def test_less_than_one_batch_is_refused() -> None:
    with pytest.raises(UserError, match="1 sequences of 4 tokens, one step takes 2"):
        Batches(PackedText([np.arange(6, dtype=np.uint16)], 4), 2, seed=0)
