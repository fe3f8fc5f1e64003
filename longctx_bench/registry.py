"""Registry: resolves names of models, methods, tasks and metrics from built-in YAML, user YAML and plug-ins."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from longctx_bench.benchmarks import BENCHMARKS
from longctx_bench.benchmarks.base import Benchmark
from longctx_bench.benchmarks.lm_eval_task import PREFIX
from longctx_bench.core.code_digest import CodeDigest
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import shipped_folder
from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.core.specs import (
    DataSpec,
    Groups,
    MethodSpec,
    ModelSpec,
    PathSource,
    Source,
    TaskSpec,
    read_yaml,
    require_mapping,
    validate,
)
from longctx_bench.methods import METHODS
from longctx_bench.methods.base import Method
from longctx_bench.methods.exported_checkpoint import ExportedCheckpoint
from longctx_bench.metrics import METRICS, Metric, as_metric
from longctx_bench.models.metadata import read_calibration, read_tuned_parameters
from longctx_bench.models.unregistered import model_from_path_or_hub_id
from longctx_bench.models.variant import ModelVariant

C = TypeVar("C", Method, Benchmark)

ALL_EXAMPLES = 1_000_000_000
"""The number of examples requested for lm-eval tasks, whose data sets decide how many there are."""


_SWITCHES = re.compile(r"(?:@(?P<factor>[0-9]+(?:\.[0-9]+)?)x)?(?:\+(?P<law>log-n|llama4))?(?P<tuned>\+tuned)?")
"""What may follow a method's name: one factor for all lengths, a law of the query scale, and parameters by sweep."""


def plain_method_name(name: str) -> str:
    """Return the method of a name with switches: ``yarn`` of ``yarn@4x+log-n``."""
    return re.split("[@+]", name, maxsplit=1)[0]


class SwitchedMethod(NamedTuple):
    """A method's name, taken apart."""

    name: str
    """The name in results, in canonical form: ``@4x``, not ``@4.0x``."""
    plain: str
    """The method that a YAML or package names."""
    params: dict[str, Any]
    """Parameters that the rest of the name sets."""


class LoadedClass(NamedTuple, Generic[C]):
    """A class that a spec names, and its source digest."""

    kind: type[C]
    code: CodeDigest | None
    """Source digest; None for classes of this package."""


class LoadedMetric(NamedTuple):
    """A task's metric, and its source digest."""

    metric: Metric
    code: CodeDigest | None
    """Source digest; None for metrics of this package."""


@dataclass
class Registry:
    """All models, methods, tasks and data sources by name. Reads only YAML: no torch, no network."""

    include_paths: Sequence[Path] = ()
    """The user's folders with method YAMLs, ``models.yaml``, task YAMLs and ``sources.yaml``, in any mix."""
    local_data: Mapping[str, Path] = field(default_factory=dict)
    """Local files that replace named data sources."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Parameter overrides by method name."""

    def __post_init__(self) -> None:
        self.models: dict[str, ModelSpec] = {}
        self.methods: dict[str, MethodSpec] = {}
        self.tasks: dict[str, TaskSpec] = {}
        self.groups: dict[str, list[str]] = {}
        self.sources: dict[str, DataSpec] = {}
        self._folders: dict[str, Path] = {}
        self._benchmarks: dict[str, LoadedClass[Benchmark]] = {}
        self._scorings: dict[str, LoadedMetric] = {}
        for folder in (shipped_folder("baselines"), shipped_folder("tasks"), *_installed_tasks(), *self.include_paths):
            self._read_folder(_existing(folder))
        self._read_plugins()
        for name in self.settings:
            if name not in self.methods:
                raise UserError(f"--set {name}: unknown method{did_you_mean(name, self.methods)}")
        for name in self.local_data:
            if name not in self.sources:
                raise UserError(f"--data {name}: unknown data source{did_you_mean(name, self.sources)}")

    # -- models -------------------------------------------------------------------------------------------------

    def variants(self, names: str) -> tuple[ModelVariant, ...]:
        """Resolve comma-separated model names, without duplicates.

        Raises:
            UserError: as :meth:`variant`, or there is no name.
        """
        variants: dict[str, ModelVariant] = {}
        for part in filter(None, (part.strip() for part in names.split(","))):
            variant = self.variant(part)
            if variants.setdefault(variant.name, variant).source != variant.source:
                raise UserError(
                    f"--model {part}: another model is called {variant.name} too; rename one folder, or list both in a "
                    f"models.yaml under different names (--include-path)"
                )
        if not variants:
            raise UserError("--model: names no model")
        return tuple(variants.values())

    def variant(self, text: str) -> ModelVariant:
        """Resolve ``METHOD-BASE``, ``BASE``, ``METHOD:HUB_ID_OR_PATH`` or ``HUB_ID_OR_PATH``.

        METHOD may be ``METHOD@4x`` (one factor for all lengths), ``METHOD+log-n`` or ``METHOD+llama4`` (queries scaled
        by their positions), ``METHOD+tuned`` (parameters swept for retrieval), or several in this order.

        Raises:
            UserError: unknown name (with a suggestion), or the base model lacks the checkpoint that the method needs.
        """
        if text in self.models:
            model = self.models[text]
            return self._variant(model.native_method, model)
        prefix, colon, rest = text.partition(":")
        if colon and self.has_method(prefix):
            return self._variant(prefix, self.models[rest]) if rest in self.models else self._other(rest, prefix)
        for method in sorted(self.methods, key=len, reverse=True):
            if not text.startswith(method):
                continue
            end = _SWITCHES.match(text, len(method)).end()  # type: ignore[union-attr]
            base = text[end:].removeprefix("-")
            if base != text[end:] and base in self.models:
                return self._variant(text[:end], self.models[base])
        if Path(text).is_dir() or ("/" in text and not colon):
            return self._other(text)
        if colon:
            raise UserError(f"--model {text}: unknown method '{prefix}'{self._similar(prefix)}")
        names = [*self.models, *(f"{method}-{base}" for method in self.methods for base in self.models)]
        raise UserError(
            f"--model {text}: unknown model{did_you_mean(text, names)} (`longctx-bench list models` shows all; "
            f"METHOD:HUB_ID_OR_PATH runs any other model)"
        )

    def _similar(self, method: str) -> str:
        return did_you_mean(plain_method_name(method), self.methods)

    def has_method(self, name: str) -> bool:
        """Whether there is a method of this name, switches included: ``yarn``, ``yarn@4x``, ``yarn+log-n``."""
        return self._switched(name) is not None

    def _switched(self, name: str) -> SwitchedMethod | None:
        """Parse a method's name, ``METHOD[@FACTORx][+LAW][+tuned]``; None if there is no such method."""
        if name in self.methods:
            return SwitchedMethod(name, name, {})
        plain = plain_method_name(name)
        switches = _SWITCHES.fullmatch(name, len(plain))
        if plain not in self.methods or switches is None:
            return None
        params: dict[str, Any] = {}
        name = plain
        if switches["factor"]:
            params["factor"] = float(switches["factor"])
            name += f"@{params['factor']:g}x"
        if switches["law"]:
            params["query_scale"] = switches["law"]
            name += f"+{switches['law']}"
        if switches["tuned"]:
            params["tuned_for"] = "retrieval"
            name += "+tuned"
        return SwitchedMethod(name, plain, params)

    def _variant(self, method_name: str, model: ModelSpec) -> ModelVariant:
        switched = self._switched(method_name)
        assert switched is not None
        method_name = switched.name
        spec, (kind, code) = self.methods[switched.plain], self._loaded(method_name)
        settings = self.settings.get(switched.plain, {})
        for key in switched.params.keys() & settings.keys():
            raise UserError(f"{method_name}-{model.name}: --set {switched.plain}.{key} says otherwise; leave one out")
        weights = spec.checkpoint or kind.checkpoint
        checkpoint = model.checkpoints.get(weights) if weights else None
        needed = kind.needs_checkpoint or spec.checkpoint is not None
        if weights and needed and checkpoint is None and model.native_method != weights:
            recipe = f"{weights}-{model.name}"
            shipped = (shipped_folder("baselines") / "recipes" / f"{recipe}.yaml").is_file()
            raise UserError(
                f"{method_name}-{model.name}: {model.name} has no {weights} checkpoint; name one as "
                f"{method_name}:FOLDER_OR_HUB_ID, or under 'checkpoints' in a models.yaml (--include-path), or make "
                f"it: `longctx-bench train {recipe if shipped else 'RECIPE'}`"
                + ("" if shipped else f", a recipe with base: {model.name}")
            )
        params = {**spec.params, **(checkpoint.params if checkpoint else {}), **settings, **switched.params}
        method = validate(kind, params, f"method {method_name}")
        spec = spec.model_copy(update={"name": method_name, "params": {**spec.params, **switched.params}})
        source = checkpoint.source if checkpoint else model.source
        try:
            method = method.with_calibration(read_calibration(source, kind.tunable))
            if method.tuned_for != "none":
                method = method.with_tuned_parameters(read_tuned_parameters(source, method.component_id()))
            if "factor" in switched.params and (kind.per_prompt or not method.uses_factor()):
                raise UserError(f"{switched.plain} has no factor by length that could be fixed")
        except UserError as error:
            raise UserError(f"{method_name}-{model.name}: {error}") from error
        return ModelVariant(model, spec, method, source, code)

    def variant_from_parts(
        self, model: ModelSpec, spec: MethodSpec, params: Mapping[str, Any], source: Source
    ) -> ModelVariant:
        """Return a variant from the parts of one that another registry resolved (on a Ray worker, say).

        Raises:
            UserError: the method's class cannot be loaded here.
        """
        kind, code = self._loaded(spec.name)
        return ModelVariant(model, spec, validate(kind, dict(params), f"method {spec.name}"), source, code)

    def _loaded(self, method: str) -> LoadedClass[Method]:
        method = method if method in self.methods else plain_method_name(method)
        use, where = self.methods[method].use, f"baselines/{method}"
        return _component(METHODS, use, Method, where, self._folders.get(method))  # type: ignore[type-abstract]

    def _other(self, name: str, method: str | None = None) -> ModelVariant:
        """Resolve a hub repository or folder that no YAML lists; without a method, with its native one."""
        kind = self._loaded(method)[0] if method is not None else None
        model, metadata = model_from_path_or_hub_id(name, kind.checkpoint if kind is not None else None)
        if metadata is None:
            needed = kind.checkpoint if kind is not None and kind.needs_checkpoint else None
            if kind is not None and needed not in (None, model.native_method):
                raise UserError(
                    f"{method}:{name}: its config does not say that it is a checkpoint of {kind.checkpoint}; if it is "
                    f"one, list it under 'checkpoints' of its base in a models.yaml (--include-path)"
                )
            return self._variant(method or model.native_method, model)
        if method is not None or metadata.method in self.settings:
            raise UserError(
                f"{name}: was exported with {metadata.method} for {metadata.length} tokens; name it alone, without "
                f"a method and without --set {metadata.method}"
            )
        spec = MethodSpec(name=metadata.method, use="exported", description="exported")
        return ModelVariant(
            model, spec, ExportedCheckpoint(factor=metadata.factor, made_for=metadata.length), model.source
        )

    # -- tasks --------------------------------------------------------------------------------------------------

    def select_tasks(self, names: str, protocol: str | None = None) -> tuple[TaskSpec, ...]:
        """Expand comma-separated task and group names, in order, without duplicates.

        Args:
            names: such as ``niah,ruler``.
            protocol: ``ruler@paper`` replaces each RULER task with upstream's procedure.

        Raises:
            UserError: a name is neither a task nor a group (with a suggestion).
        """
        chosen: dict[str, TaskSpec] = {}
        for name in filter(None, (part.strip() for part in names.split(","))):
            for member in [name] if name in self.tasks else self.groups.get(name, [name]):
                if member.startswith(PREFIX) and member not in self.tasks:
                    if protocol:
                        raise UserError(f"--protocol {protocol}: task '{member}' does not have it")
                    chosen[member] = self._lm_eval(member)
                    continue
                protocol_task = f"{member}@{protocol.partition('@')[2]}" if protocol else member
                task = protocol_task if protocol_task in self.tasks else member
                if task not in self.tasks:
                    raise UserError(f"--tasks: unknown task '{task}'{did_you_mean(task, [*self.tasks, *self.groups])}")
                if protocol and self.tasks[task].protocol != protocol:
                    protocols = {spec.protocol for spec in self.tasks.values()}
                    hint = "" if protocol in protocols else did_you_mean(protocol, protocols)
                    raise UserError(f"--protocol {protocol}: task '{task}' does not have it{hint}")
                chosen[task] = self.tasks[task]
        if not chosen:
            raise UserError("--tasks: names no task")
        return tuple(chosen.values())

    def _lm_eval(self, name: str) -> TaskSpec:
        """Return the spec of an lm-eval task: built in, or from a YAML file in ``lm_eval/`` of a ``--include-path``."""
        task = name.removeprefix(PREFIX)
        folders = [folder / "lm_eval" for folder in self.include_paths if _holds_lm_eval(folder / "lm_eval", task)]
        return TaskSpec(
            name=name,
            use="lm-eval",
            metric="lm_eval",
            max_new_tokens=0,
            samples=ALL_EXAMPLES,
            params={"task": task, "include": {"path": str(folders[0].resolve())} if folders else None},
        )

    def benchmark(self, task: TaskSpec) -> Benchmark:
        """Return a task's benchmark.

        Raises:
            UserError: the class cannot be loaded or a parameter is wrong.
        """
        if task.name not in self._benchmarks:
            self.benchmark_code(task)
        sources = {name: spec.source for name, spec in self.sources.items()}
        context = {"sources": sources, "folder": self._folders.get(f"task:{task.name}")}
        return validate(self._benchmarks[task.name].kind, task.params, f"task {task.name}", context)

    def benchmark_code(self, task: TaskSpec) -> CodeDigest | None:
        """Reload a task's benchmark class for subsequent calls of :meth:`benchmark`; return a plug-in's source digest.

        Raises:
            UserError: the class cannot be loaded.
        """
        where, folder = f"task {task.name}", self._folders.get(f"task:{task.name}")
        loaded = _component(BENCHMARKS, task.use, Benchmark, where, folder)  # type: ignore[type-abstract]
        self._benchmarks[task.name] = loaded
        return loaded.code

    def metric(self, task: TaskSpec) -> LoadedMetric:
        """Return a task's metric: a registered one, or a function in a package or in a file next to its YAML.

        Raises:
            UserError: there is no such metric, or it cannot be loaded.
        """
        if task.name not in self._scorings:
            self.load_metric(task)
        return self._scorings[task.name]

    def load_metric(self, task: TaskSpec) -> LoadedMetric:
        """Reload a task's metric for subsequent calls of :meth:`metric`; errors as there."""
        where, folder = f"task {task.name}: metric", self._folders.get(f"task:{task.name}")
        loaded = METRICS.resolve(task.metric, where, folder)
        self._scorings[task.name] = LoadedMetric(as_metric(loaded.value, task.metric.rpartition(":")[2]), loaded.code)
        return self._scorings[task.name]

    # -- reading ------------------------------------------------------------------------------------------------

    def _read_folder(self, folder: Path) -> None:
        """Read a folder's ``models.yaml`` and ``sources.yaml``, and its other YAMLs as methods or tasks."""
        files = {path: read_yaml(path) for path in sorted(folder.glob("*.yaml"))}
        models, sources = files.pop(folder / "models.yaml", {}), files.pop(folder / "sources.yaml", {})
        for name, entry in models.items():
            where = f"{folder / 'models.yaml'}: {name}"
            model = validate(ModelSpec, {"name": name, **require_mapping(entry, where)}, where, {"folder": folder})
            self.models[name] = model
        self._add_sources(folder, sources)
        for path, values in files.items():
            if _is_method(values):
                spec = validate(MethodSpec, {"name": path.stem, **values}, str(path))
                self.methods[spec.name] = spec
                self._folders[spec.name] = folder
            else:
                self._add_tasks(path, values)

    def _read_plugins(self) -> None:
        for name in METHODS.names():
            if name not in METHODS.shipped:
                self.methods.setdefault(name, MethodSpec(name=name, use=name))

    def _add_sources(self, folder: Path, values: Mapping[str, Any]) -> None:
        for name, entry in values.items():
            where = f"{folder / 'sources.yaml'}: {name}"
            self.sources[name] = validate(DataSpec, require_mapping(entry, where), where, {"folder": folder})
        for name, path in self.local_data.items():
            if name in self.sources:
                self.sources[name] = self.sources[name].model_copy(
                    update={"source": PathSource(path=path.resolve(), alias=name)}
                )

    def _add_tasks(self, path: Path, values: Mapping[str, Any]) -> None:
        for name, entry in values.items():
            if name.startswith("_"):
                continue
            where = f"{path}: {name}"
            if name == "groups":
                self.groups.update(validate(Groups, {"groups": entry}, where).groups)
                continue
            self.tasks[name] = validate(TaskSpec, {"name": name, **require_mapping(entry, where)}, where)
            self._folders[f"task:{name}"] = path.parent


def _is_method(values: Mapping[str, Any]) -> bool:
    """Whether a YAML describes one method (fields such as ``use``) rather than tasks by name."""
    fields = MethodSpec.model_fields
    return "use" in values or any(name in fields and not isinstance(entry, Mapping) for name, entry in values.items())


def _component(
    registry: PluginRegistry[type[C]], use: str, kind: type[C], where: str, folder: Path | None
) -> LoadedClass[C]:
    """Return the class that a YAML names under ``use``: a registered name, or a location in a package or file.

    Raises:
        UserError: there is no such class, or it is not a subclass of ``kind``.
    """
    loaded = registry.resolve(use, f"{where}: use", folder)
    if not (isinstance(loaded.value, type) and issubclass(loaded.value, kind)):
        raise UserError(f"{where}: use: {use}: is not a subclass of longctx_bench's {kind.__name__}")
    if missing := sorted(getattr(loaded.value, "__abstractmethods__", ())):
        # Usually the author misspelt the name of a method: suggest the closest that the class itself defines.
        similar = difflib.get_close_matches(missing[0], _defined(loaded.value), n=1)
        also = f", only '{similar[0]}'" if similar else ""
        raise UserError(f"{where}: use: {use}: does not define '{missing[0]}'{also}")
    return LoadedClass(loaded.value, loaded.code)


def _defined(kind: type) -> list[str]:
    """Return the names of a class's own functions that none of its bases has."""
    inherited = {name for base in kind.__mro__[1:] for name in vars(base)}
    return [name for name, value in vars(kind).items() if callable(value) and name not in inherited]


def _installed_tasks() -> list[Path]:
    """Return the task folders of installed packages (entry points of ``longctx_bench.tasks``)."""
    folders = []
    for point in sorted(entry_points(group="longctx_bench.tasks"), key=lambda point: point.name):
        # Located without importing it: only its YAML is needed.
        try:
            spec = find_spec(point.value)
        except ImportError:
            spec = None
        locations = list(spec.submodule_search_locations or ()) if spec is not None else []
        if not locations:
            raise UserError(f"tasks of '{point.name}': {point.value} is not an installed package")
        folders.append(Path(locations[0]))
    return folders


def _holds_lm_eval(folder: Path, task: str) -> bool:
    """Whether a folder has an lm-eval task, by file name or (as lm-eval reads it) by its ``task`` entry."""
    if (folder / f"{task}.yaml").is_file():
        return True
    # Not parsed: lm-eval's YAML has custom tags such as !function.
    named = re.compile(rf"""^task:[ \t]*(["']?){re.escape(task)}\1[ \t]*(#.*)?$""", re.MULTILINE)
    files = sorted(folder.rglob("*.yaml"))
    return any(named.search(file.read_text(encoding="utf-8", errors="replace")) for file in files if file.is_file())


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"--include-path {folder}: no such folder")
    return folder
