"""YAML as its safe loader reads it, without what that loses: a key that stands twice in one mapping is an error."""

from __future__ import annotations

from typing import Any

import yaml


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would take the last without a word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._flat: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Here, before `<<` is resolved: what a mapping takes from another one it may give a value of its own.
        if node in self._flat:
            return
        self._flat.add(node)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = (key.tag, key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' of line {seen[name]} stands there again", key.start_mark
                )
            seen[name] = key.start_mark.line + 1
        super().flatten_mapping(node)


def load_yaml(text: str) -> Any:
    """Return what YAML text stands for.

    Raises:
        yaml.YAMLError: it is not YAML, nested too deeply, or has a key twice in one mapping.
    """
    loader = _UniqueKeys(text)
    try:
        return loader.get_single_data()
    except (RecursionError, ValueError) as error:
        # The latter of a date that is none, say.
        raise yaml.YAMLError("nested too deeply" if isinstance(error, RecursionError) else error) from error
    finally:
        loader.dispose()
