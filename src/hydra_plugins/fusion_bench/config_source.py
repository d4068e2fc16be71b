"""A Hydra config source that reads method configurations off the method classes, and single YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, ListConfig, OmegaConf

_FILE_GROUPS = ("modelpool", "taskpool", "method")


class MethodConfigSource(ConfigSource):
    """``method/ties_merging`` is the defaults of the class in that file; ``modelpool/./my.yaml`` is the file my.yaml.

    Only the chosen method is imported, and no method imports torch.
    """

    @staticmethod
    def scheme() -> str:
        return "fusion-bench"

    def available(self) -> bool:
        return True

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.partition("/")
        file = self._file(config_path)
        if file is not None:
            config = _completed(group, OmegaConf.load(file))
            return ConfigResult(config=config, path=str(file), provider=self.provider, header={"package": None})
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found: {config_path}")
        from fusion_bench.build import defaults
        from fusion_bench.method import method_class

        key = name.removesuffix(".yaml")
        config = OmegaConf.create({"name": key, **_with_inner(method_class(key), defaults(method_class(key)))})
        return ConfigResult(config=config, path=f"{self.scheme()}://{group}/{key}", provider=self.provider,
                            header={"package": None})  # fmt: skip

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "method")

    def is_config(self, config_path: str) -> bool:
        if self._file(config_path) is not None:
            return True
        group, _, name = config_path.partition("/")
        if group != "method":
            return False
        from fusion_bench.method import method_modules

        return name.removesuffix(".yaml") in method_modules()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "" and results_filter != ObjectType.CONFIG:
            return ["method"]
        if config_path != "method" or results_filter == ObjectType.GROUP:
            return []
        from fusion_bench.method import method_modules

        return list(method_modules())

    @staticmethod
    def _file(config_path: str) -> Path | None:
        """The YAML file that a value such as ``./my.yaml`` names; only values with a path or an ending are files."""
        group, _, value = config_path.partition("/")
        if group not in _FILE_GROUPS or not ("/" in value or value.endswith((".yaml", ".yml"))):
            return None
        file = Path(value).expanduser()
        return file if file.is_file() else None


def _with_inner(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Methods inside a method as mappings, so that their hyperparameters can be set one by one."""
    from typing import get_type_hints

    hints = get_type_hints(cls)
    return {
        name: {"name": value} if isinstance(value, str) and hasattr(hints[name], "from_plain") else value
        for name, value in values.items()
    }


def _completed(group: str, config: Any) -> Any:
    """`config` with the keys it leaves out at their defaults, so that the command line can override them, too."""
    from fusion_bench.build import defaults

    if not isinstance(config, DictConfig):
        raise ConfigLoadError(f"{group}: the file does not hold a mapping of keys to values")
    types = _types(group)
    kind = config.get("type")
    if kind is None and group == "modelpool":
        kind = "models"
    if kind not in types:
        return config  # said in full when the pool is built
    if kind == "models":
        config.models = _in_full(config.get("models"))
    return OmegaConf.merge(OmegaConf.create({"type": kind, **defaults(types[kind])}), config)


def _in_full(models: Any) -> Any:
    """Members as mappings, so that each has a path and a revision to override."""

    def member(value: Any) -> Any:
        return {"path": value, "revision": None} if isinstance(value, str) else {"revision": None, **value}

    if isinstance(models, DictConfig):
        return {name: member(value) for name, value in models.items()}
    if isinstance(models, ListConfig):
        return [member(value) for value in models]
    return models


def _types(group: str) -> dict[str, Any]:
    if group == "modelpool":
        from fusion_bench.modelpool import pool_types

        return pool_types()
    if group == "taskpool":
        from fusion_bench.taskpool import TYPES

        return {name: load() for name, load in TYPES.items()}
    return {}
