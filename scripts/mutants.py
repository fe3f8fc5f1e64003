"""``python scripts/mutants.py --count 150 --seed 18``: change the code a little, and see whether a test notices.

Mutants are drawn over ``longctx_bench/``, more of them where a mistake would lose or falsify results (``WEIGHTS``).
Each is tried in a copy of the checkout, one after the other: a test must fail, or run into its time limit. Which tests
are run, ``--record`` finds out first: it runs all of them once and keeps, for each line, those that reach it, the
quickest first. Without it, and for lines that only other processes reach, they are those of the module (``TESTS``).
What survives is printed with its place and kept as JSON: each survivor wants a test, or the reason why it changes
nothing that anybody could see.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from xml.etree import ElementTree

from coverage import CoverageData

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "longctx_bench"

WEIGHTS = {
    "store/*": 8, "core/untrusted_files": 8, "core/io": 8, "core/sources": 8, "registry": 8,
    "runner/executors/*": 6, "benchmarks/*": 4, "runner/run": 6, "runner/plan": 6,
    "runner/request_builder": 4, "runner/batch_scoring": 4, "core/types": 4,
    "metrics/*": 3, "engines/*": 1, "reporting/*": 1, "cli/*": 0.5, "training/*": 0.5, "*": 1,
}  # fmt: skip
"""How often a place in a module is drawn, by the first pattern that its path below the package matches."""

TESTS = {
    "store/schema": ("tests/store", "tests/test_identities.py"),
    "store/migrate": ("tests/store",),
    "store/reader": ("tests/reporting/test_hostile_results.py", "tests/reporting/test_results.py"),
    "store/prompt_excerpts": ("tests/store/test_prompt_excerpts.py", "tests/runner/test_cell_parts.py"),
    "store/jsonl_recovery": ("tests/store/test_run_store.py",),
    "store/cell_folders": (
        "tests/store/test_run_store.py",
        "tests/runner/test_run_command.py",
        "tests/reporting/test_results.py",
    ),
    "store/*": (
        "tests/store/test_run_store.py",
        "tests/runner/test_run_command.py",
        "tests/test_identities.py",
        "tests/test_faults.py",
    ),
    "core/untrusted_files": (
        "tests/store/test_run_store.py",
        "tests/reporting/test_hostile_results.py",
        "tests/models/test_foreign_models.py",
    ),
    "core/io": (
        "tests/store/test_run_store.py",
        "tests/test_faults.py",
        "tests/cli/test_cli.py",
        "tests/core/test_specs.py",
    ),
    "core/sources": ("tests/test_identities.py", "tests/core/test_sources.py", "tests/models/test_hub.py"),
    "core/text_files": ("tests/benchmarks/test_perplexity.py", "tests/training/data/test_corpus.py"),
    "registry": (
        "tests/test_registry.py",
        "tests/core/test_specs.py",
        "tests/cli/test_cli.py",
        "tests/test_plugin_example.py",
    ),
    "models/unregistered": ("tests/test_registry.py", "tests/models/test_hub.py", "tests/cli/test_cli.py"),
    "models/*": (
        "tests/models",
        "tests/models/test_hub.py",
        "tests/models/test_foreign_models.py",
        "tests/test_registry.py",
    ),
    "core/plugins": ("tests/test_registry.py", "tests/core/test_specs.py", "tests/test_plugin_example.py"),
    "models/metadata": (
        "tests/analysis/calibration",
        "tests/models/test_hub.py",
        "tests/training/test_temperatures.py",
    ),
    "core/specs": ("tests/core/test_specs.py", "tests/test_registry.py", "tests/test_identities.py"),
    "runner/plan": (
        "tests/test_identities.py",
        "tests/runner/test_run_command.py",
        "tests/cli/test_cli.py",
        "tests/models/test_hub.py",
    ),
    "runner/request_builder": (
        "tests/runner/test_run_command.py",
        "tests/test_identities.py",
        "tests/engines/hf/test_drafts.py",
    ),
    "runner/batch_scoring": (
        "tests/runner/test_runner.py",
        "tests/benchmarks/test_perplexity.py",
        "tests/runner/test_run_command.py",
    ),
    "core/types": ("tests/test_identities.py", "tests/runner/test_run_command.py"),
    "reporting/show_example": ("tests/store/test_prompt_excerpts.py", "tests/cli/test_cli.py"),
    "runner/export_prompts": ("tests/runner/test_export_prompts.py",),
    "runner/run": (
        "tests/runner/test_runner.py",
        "tests/runner/test_run_command.py",
        "tests/test_faults.py",
        "tests/store/test_run_store.py",
    ),
    "runner/executors/ray_executor/worker_pool": ("tests/runner/executors/ray_executor/test_worker_pool.py",),
    "runner/executors/ray_executor/executor": (
        "tests/runner/executors/ray_executor/test_worker_pool.py",
        "tests/runner/executors/test_executors.py",
    ),
    "runner/executors/ray_executor/worker": (
        "tests/runner/executors/test_executors.py",
        "tests/runner/executors/ray_executor/test_worker_pool.py",
    ),
    "runner/executors/*": (
        "tests/runner/executors/test_executors.py",
        "tests/runner/executors/ray_executor/test_worker_pool.py",
        "tests/runner/test_run_command.py",
    ),
    "benchmarks/longbench/*": ("tests/test_identities.py", "tests/benchmarks/longbench/test_longbench_prompts.py"),
    "benchmarks/ruler_upstream/*": (
        "tests/test_identities.py",
        "tests/benchmarks/ruler_upstream/test_ruler_upstream.py",
    ),
    "benchmarks/perplexity": ("tests/test_identities.py", "tests/benchmarks/test_perplexity.py"),
    "benchmarks/lm_eval_task": ("tests/lm_eval_adapter", "tests/test_registry.py"),
    "benchmarks/*": ("tests/test_identities.py", "tests/benchmarks"),
    "metrics/*": (
        "tests/metrics",
        "tests/benchmarks/ruler/test_ruler_tasks.py",
        "tests/runner/test_score_upstream_files.py",
    ),
    "runner/score_*": ("tests/runner/test_score_upstream_files.py", "tests/cli/test_cli.py"),
    "methods/*": ("tests/methods", "tests/analysis/calibration", "tests/test_tiny_family.py"),
    "engines/openai_api/http_client": (
        "tests/engines/openai_api/test_http_client.py",
        "tests/engines/openai_api/test_openai_engine.py",
    ),
    "engines/*": ("tests/engines", "tests/runner/test_run_command.py", "tests/models/test_hub.py"),
    "reporting/figures/*": ("tests/reporting/figures",),
    "reporting/*": ("tests/reporting", "tests/cli/test_cli.py", "tests/metrics/test_length_buckets.py"),
    "analysis/calibration/*": ("tests/analysis/calibration", "tests/reporting/test_hints.py"),
    "analysis/parity/*": ("tests/analysis/parity/test_parity.py",),
    "analysis/probes/*": ("tests/analysis/probes",),
    "lm_eval_adapter/*": ("tests/lm_eval_adapter",),
    "training/*": ("tests/training",),
    "cli/*": (
        "tests/cli/test_cli.py",
        "tests/reporting",
        "tests/analysis/calibration",
        "tests/analysis/parity/test_parity.py",
        "tests/analysis/probes",
    ),
    "*": ("tests/cli/test_cli.py", "tests/runner/test_run_command.py", "tests/core/test_specs.py"),
}
"""Which tests are to notice, by the first pattern that a module's path below the package matches."""

_NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes ``start`` to ``end`` of a file become ``after``."""

    file: str
    """Below the checkout."""
    line: int
    start: int
    end: int
    operator: str
    before: str
    after: str


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a mutant."""

    mutant: Mutant
    outcome: str
    """``killed``, ``timeout`` (noticed, too) or ``survived``."""
    seconds: float
    by: str = ""
    """The test that noticed."""


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every change that is tried in a file, in the order of its text."""
    source = path.read_bytes()
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    for node, operator, changed in _changes(ast.parse(source)):
        start = offsets[node.lineno - 1] + node.col_offset
        end = offsets[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        after = ast.unparse(changed)
        before = source[start:end].decode()
        if isinstance(node, ast.expr):
            after = f"({after})"
        yield Mutant(path.relative_to(ROOT).as_posix(), node.lineno, start, end, operator, before, after)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str, ast.AST]]:
    """Yield a node, what is done to it, and what it becomes."""
    for node in _own(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            for operator, table in (("comparison", _NEGATED), ("boundary", _BOUNDARY)):
                if type(node.ops[0]) in table:
                    yield node, operator, ast.Compare(node.left, [table[type(node.ops[0])]()], node.comparators)
        elif isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield node, "boolean", ast.BoolOp(other, node.values)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, "boolean", node.operand
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            yield node, "constant", ast.Constant(value)
        elif isinstance(node, ast.Return) and not _is_none(node.value):
            yield node, "return", ast.Return(ast.Constant(None))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node, "call", ast.Pass()
        if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
            yield node.test, "boolean", ast.UnaryOp(ast.Not(), copy.deepcopy(node.test))


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that say what is done: no annotations, and nothing in f-strings, whose places are not exact."""
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            yield child
            yield from _own(child)


def chosen(patterns: dict[str, float] | dict[str, tuple[str, ...]], file: str) -> float | tuple[str, ...]:
    """Return what belongs to the first pattern that a file's module matches."""
    module = file.removeprefix(f"{PACKAGE}/").removesuffix(".py")
    return next(value for pattern, value in patterns.items() if fnmatch(module, pattern))


def draw(count: int, seed: int, only: Sequence[str]) -> list[Mutant]:
    """Draw mutants without repetition, each place as likely as its module's weight says.

    Args:
        count: how many; fewer where there are not so many.
        seed: of the draw.
        only: patterns of modules (``store/*``, ``executors/*``); all when empty.
    """
    places: list[tuple[float, Mutant]] = []
    chance = random.Random(seed)
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        module = file.removeprefix(f"{PACKAGE}/").removesuffix(".py")
        weight = chosen(WEIGHTS, file)
        assert isinstance(weight, float | int)
        if weight and (not only or any(fnmatch(module, pattern) for pattern in only)):
            # The largest keys of a weighted draw without repetition (Efraimidis and Spirakis 2006).
            places += [(chance.random() ** (1 / weight), mutant) for mutant in mutants_of(path)]
    places.sort(key=lambda place: -place[0])
    return [mutant for _, mutant in places[:count]]


class Reached:
    """Which tests reach which lines, as one run of all of them under coverage found it."""

    def __init__(self, folder: Path) -> None:
        self._data = CoverageData(str(folder / "coverage"))
        self._data.read()
        seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
        self._seconds: dict[str, float] = {name: float(spent) for name, spent in seconds.items()}

    def tests(self, mutant: Mutant) -> tuple[str, ...]:
        """Return the tests that reach a mutant's line and pass without it, the quickest first."""
        file = next((name for name in self._data.measured_files() if name.endswith(f"/{mutant.file}")), None)
        contexts = self._data.contexts_by_lineno(file).get(mutant.line, []) if file else []
        # A context is a test and what of it ran, TEST|run; a test's parameters may hold that sign too.
        names = {context.rpartition("|")[0] for context in contexts} & self._seconds.keys()
        return tuple(sorted(names, key=self._seconds.__getitem__))

    def seconds(self, test: str) -> float:
        """Return what a test took."""
        return self._seconds[test]


def record(folder: Path, marks: str) -> None:
    """Run all tests under coverage and keep what each reached, and how long it took; those that fail are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-m", marks, f"--cov={PACKAGE}",
               "--cov-context=test", "--cov-report=", f"--junit-xml={report}", "-o", "junit_family=xunit1"]  # fmt: skip
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "coverage"), "PYTHONPATH": str(ROOT)}
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode not in {0, 1}:
        sys.exit("the tests did not run to their end")
    seconds = {}
    # Written a moment ago, by pytest.
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314
        name = f"{case.get('file')}::{case.get('name')}"
        if case.find("failure") is None and case.find("error") is None:
            seconds[name] = float(case.get("time") or 0)
        else:
            # It would be said to notice every change.
            print(f"left out, as it fails without any change: {name}")
    (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


class Copy:
    """A copy of the checkout whose code may be changed; what is only read is linked."""

    def __init__(self, folder: Path, reached: Reached | None = None) -> None:
        self.folder = folder
        self._reached = reached
        for path in ROOT.iterdir():
            if path.name in {PACKAGE, "tests"}:
                shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif not path.name.startswith(".") or path.name == ".gitignore":
                (folder / path.name).symlink_to(path)
        self._well: dict[str, float] = {}
        """Seconds that tests take without any change."""

    def try_out(self, mutant: Mutant, marks: str) -> Verdict:
        """Run the tests of a mutant's module on it.

        Raises:
            SystemExit: the tests fail without any change.
        """
        tests = self._reached.tests(mutant) if self._reached is not None else ()
        if self._reached is not None:
            self._well |= {test: self._reached.seconds(test) for test in tests}
        if not tests:
            tests = chosen(TESTS, mutant.file)  # type: ignore[assignment]
        assert isinstance(tests, tuple)
        for test in tests:
            if test not in self._well:
                began = monotonic()
                if self._outcome((test,), marks, 3600)[0] != "survived":
                    sys.exit(f"{test}: fails without any change")
                self._well[test] = monotonic() - began
        path = self.folder / mutant.file
        source = path.read_bytes()
        began = monotonic()
        path.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
        try:
            outcome, by = self._outcome(tests, marks, 60 + 4 * sum(self._well[test] for test in tests))
        finally:
            path.write_bytes(source)
        return Verdict(mutant, outcome, round(monotonic() - began, 1), by)

    def _outcome(self, tests: tuple[str, ...], marks: str, limit: float) -> tuple[str, str]:
        """Run tests until one fails; return what came of it and which one that was."""
        # Thousands of tests are more than a command line takes.
        names = self.folder / "tests-to-run.txt"
        names.write_text("\n".join(tests) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marks, f"@{names}"]
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            # With what it has started itself.
            os.killpg(process.pid, 9)
            process.communicate()
            return "timeout", ""
        if process.returncode in {0, 5}:
            return "survived", ""
        lines = said.decode(errors="replace").splitlines()
        absent = {line.partition(f"{self.folder}/")[2] for line in lines if line.startswith("ERROR: not found: ")}
        if absent & {*tests}:
            # A change that gives a test another name is not noticed by that.
            left = tuple(test for test in tests if test not in absent)
            return self._outcome(left, marks, limit) if left else ("survived", "")
        return "killed", next((line for line in reversed(lines) if line.startswith(("FAILED ", "ERROR "))), "")[:200]


def main() -> None:
    """Draw, try, print, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--only", default="", help="modules, comma-separated: store/*,executors/*")
    parser.add_argument("--marks", default="not cluster", help="as pytest's -m")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    parser.add_argument("--reached", type=Path, default=Path("mutants-reached"), help="folder of --record")
    parser.add_argument("--record", action="store_true", help="run all tests once and keep what they reach")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many: to go on with a run")
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    asked = parser.parse_args()
    if asked.record:
        record(asked.reached, asked.marks)
        return
    mutants = draw(asked.count, asked.seed, list(filter(None, asked.only.split(","))))
    if asked.list:
        for mutant in mutants:
            print(_shown(mutant))
        return
    verdicts: list[Verdict] = []
    with TemporaryDirectory(prefix="mutants-") as scratch:
        tried = Copy(Path(scratch), Reached(asked.reached) if asked.reached.is_dir() else None)
        for number, mutant in enumerate(mutants[asked.skip :], asked.skip + 1):
            verdicts.append(tried.try_out(mutant, asked.marks))
            last = verdicts[-1]
            print(f"{number}/{len(mutants)} {last.outcome} ({last.seconds:.0f} s): {_shown(mutant)}", flush=True)
            asked.out.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n")
    survivors = [verdict.mutant for verdict in verdicts if verdict.outcome == "survived"]
    print(f"\n{len(verdicts) - len(survivors)} of {len(verdicts)} were noticed")
    for mutant in survivors:
        print(f"survived: {_shown(mutant)}")


def _shown(mutant: Mutant) -> str:
    before, after = (" ".join(text.split())[:90] for text in (mutant.before, mutant.after))
    return f"{mutant.file}:{mutant.line}: {mutant.operator}: {before}  ->  {after}"


if __name__ == "__main__":
    main()
