"""What prompts, cells and data are known by does not change between versions; ``identities.py`` says how it is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.reference_results import reference, reference_stores
from identities import MIB, PINNED, big_file, found

from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.sources import content_digest
from longctx_bench.core.specs import PathSource
from longctx_bench.core.types import Cell
from longctx_bench.models.checkpoint import checkpoint_folder, prompt_tokenizer
from longctx_bench.registry import Registry
from longctx_bench.store.bundle import open_store
from longctx_bench.store.cell_folders import cell_path_parts
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import parse_result, parse_spec


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found(tmp_path_factory.mktemp("identities"))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["prompts", "cells", "cells of local data", "digests"])
def test_identities_are_those_of_the_versions_before(now: dict[str, Any], part: str) -> None:
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))
    assert pinned.keys() == now.keys()
    other = sorted(name for name, value in pinned[part].items() if now[part].get(name) != value)
    assert not other, "results that were measured would be measured again, or compared with others"
    missing = sorted(now[part].keys() - pinned[part].keys())
    assert not missing, "new ones are to be pinned: python tests/identities.py"


@pytest.mark.slow
def test_every_task_has_prompts(now: dict[str, Any]) -> None:
    written = {name.split()[0] for name, row in now["prompts"].items() if len(row) == 4}
    assert set(Registry().tasks) - written <= {"qa_2@paper"}, "whose documents take more tokens than these lengths"


@pytest.fixture(scope="module")
def shipped() -> ResultStore:
    """The tiny family's results, unpacked."""
    return open_store(reference("tiny"))


@pytest.mark.parametrize("task", ["niah", "niah_multikey", "niah_multiquery", "niah_multivalue"])
def test_prompts_are_those_of_the_results_that_ship(shipped: ResultStore, task: str) -> None:
    registry = Registry()
    folder = checkpoint_folder(registry.variant("tiny").source)
    encoder, spec = PromptEncoder(prompt_tokenizer(folder)), registry.tasks[task]
    measured = shipped.path(Cell("tiny", "rope", task, 1024))
    cell = json.loads((measured / "cell.json").read_text())
    lines = (measured / "records.jsonl").read_text().splitlines()[:3]
    made = registry.benchmark(spec).examples(encoder, 1024, spec.max_new_tokens, 3, cell["spec"]["seed"])
    assert [json.loads(line)["hash"] for line in lines] == [example.hash for example in made]


def test_cells_that_ship_are_where_their_names_say_and_have_their_hashes() -> None:
    stores = reference_stores()
    folders = [folder for store in stores for folder in store.folders() if (folder / "cell.json").exists()]
    assert len(folders) > 600
    for folder in folders:
        details = json.loads((folder / "cell.json").read_bytes())
        assert folder.parts[-4:] == cell_path_parts(Cell(**details["cell"]))
        assert parse_spec(details).hash == parse_result(details).spec_hash == details["spec_hash"]


@pytest.mark.parametrize("kind", ["model.safetensors", "rows.jsonl"])
def test_a_change_near_either_end_of_a_large_file_is_noticed(tmp_path: Path, kind: str) -> None:
    if kind == "model.safetensors":
        (tmp_path / "config.json").write_text("{}")
    size = 5 * MIB + 77
    path = tmp_path / kind
    big_file(path, size)
    source = PathSource(path=tmp_path)
    before = content_digest(source)
    assert content_digest(source) == before
    for place in (0, MIB - 1, size - MIB, size - MIB + 5, size - 2, size - 1):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        assert content_digest(source) != before, place
        content[place] ^= 1
        path.write_bytes(content)
    with path.open("ab") as file:
        file.write(b"x")
    assert content_digest(source) != before
    alone = tmp_path / "alone"
    big_file(alone, size)
    before = content_digest(PathSource(path=alone))
    content = bytearray(alone.read_bytes())
    content[size // 2] ^= 1
    alone.write_bytes(content)
    assert content_digest(PathSource(path=alone)) != before, "a file by itself is read whole"
