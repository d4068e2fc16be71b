"""Puts the method configurations on the search path of the fusion_bench application, no other."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class FusionBenchSearchPath(SearchPathPlugin):
    """Hydra asks every installed plugin of every application, so this one looks whose configurations are searched."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        paths = [(element.path or "").replace("\\", "/") for element in search_path.get_path()]
        if any(path.rstrip("/").endswith("fusion_bench/configs") for path in paths):
            search_path.append(provider="fusion-bench", path="fusion-bench://")
