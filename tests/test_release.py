"""What a release is made of agrees: versions, citation, metadata."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_that_of_the_citation_and_the_changelog() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert citation["version"] == newest[1] == PROJECT["version"]


def test_every_supported_python_is_tested() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert named == tested
    assert PROJECT["requires-python"] == f">={tested[0]}"


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / ".github/workflows").glob("*.yml")))
def test_workflows_call_targets_that_exist(file: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"^([a-z][a-z ]*):", makefile, re.MULTILINE) for name in line.split()}
    called = re.findall(r"run: (?:sudo )?make ([a-z]+)$", (ROOT / ".github/workflows" / file).read_text(), re.MULTILINE)
    assert called
    assert set(called) <= targets


@pytest.mark.parametrize(
    "card", sorted((ROOT / "baselines/checkpoints").glob("*/README.md")), ids=lambda p: p.parent.name
)
def test_cards_say_what_a_model_is_derived_from(card: Path) -> None:
    header = yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])
    assert header["license"] == "apache-2.0"
    assert header["datasets"]
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert card.parent.name in notice
    if "smollm" in card.parent.name:
        assert header["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert "CHANGED" in notice
