"""Safe YAML loading in which duplicate keys are errors."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import Composer

if yaml.__with_libyaml__:

    class _Loader(Composer, yaml.CSafeLoader):
        """libyaml's parser, three times as fast. Its own composer recurses in C and crashes on deep nesting."""

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)

else:
    _Loader = yaml.SafeLoader  # type: ignore[assignment, misc]


class _UniqueKeys(_Loader):
    """Rejects duplicate keys in a mapping, of which PyYAML would silently use the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._flat: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Before `<<` is resolved, because a mapping may override merged keys.
        if node in self._flat:
            return
        self._flat.add(node)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = (key.tag, key.value)
            if name in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' of line {lines[name]} is repeated", key.start_mark
                )
            lines[name] = key.start_mark.line + 1
        super().flatten_mapping(node)


def load_yaml(text: str) -> Any:
    """Parse YAML text.

    Raises:
        yaml.YAMLError: invalid YAML, nested too deeply, or a duplicate key.
    """
    loader = _UniqueKeys(text)
    try:
        return loader.get_single_data()
    except (RecursionError, ValueError) as error:
        # ValueError: an invalid date, for example.
        raise yaml.YAMLError("nested too deeply" if isinstance(error, RecursionError) else error) from error
    finally:
        loader.dispose()
