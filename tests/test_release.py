"""What a release is made of agrees: versions, citation, metadata."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_that_of_the_citation_and_the_changelog() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert citation["version"] == newest[1] == PROJECT["version"]


def test_the_lock_file_has_a_version_within_bounds_of_every_requirement() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    pinned: dict[str, list[Requirement]] = {}
    for pin in map(Requirement, filter(None, map(str.strip, lines))):
        assert [entry.operator for entry in pin.specifier] == ["=="], pin
        pinned.setdefault(canonicalize_name(pin.name), []).append(pin)
    extras = PROJECT["optional-dependencies"]
    # vLLM has versions of its own (requirements-vllm.txt), the weights too.
    locked = [name for name in extras if name not in {"vllm", "tiny", "smollm"}]
    for text in [*PROJECT["dependencies"], *(text for name in locked for text in extras[name])]:
        needed = Requirement(text)
        if needed.name == PROJECT["name"]:
            continue
        for python in re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"])):
            environment = {"python_version": python, "python_full_version": f"{python}.9"}
            [pin] = [
                pin
                for pin in pinned[canonicalize_name(needed.name)]
                if pin.marker is None or pin.marker.evaluate(environment)
            ]
            assert needed.specifier.contains(next(iter(pin.specifier)).version), (text, str(pin))


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


def test_the_makefile_names_files_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:tests|scripts)/[\w/]+\.py", makefile))
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).is_file()] == []


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
