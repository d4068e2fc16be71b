"""The Hydra application: composing a configuration, and saying plainly why it cannot be composed."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_bench.errors import ConfigError, FusionError

_GROUPS = ("method", "modelpool", "taskpool")
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def run_app(arguments: Sequence[str]) -> int:
    """Runs one job, or a sweep with ``-m``; prints help, configurations and completions as Hydra applications do."""
    if "--version" in arguments:
        from fusion_bench import __version__

        print(f"fusion_bench {__version__}")
        return 0
    from fusion_bench.cli.argv import translate

    arguments = translate(arguments, _members)
    scratch: str | None = None
    own_folder = any(a.lstrip("+").startswith("hydra.sweep.dir=") for a in arguments)
    if _has(arguments, "-m", "--multirun") and not own_folder:
        # Hydra's sweeper writes multirun.yaml into the sweep's folder; nothing is left behind unless asked for.
        scratch = tempfile.mkdtemp(prefix="fusion_bench-")
        arguments = [*arguments, f"hydra.sweep.dir={scratch}"]
    try:
        return _hydra(arguments)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _has(arguments: Sequence[str], *flags: str) -> bool:
    return any(argument in flags for argument in arguments)


def _hydra(arguments: list[str]) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fusion_bench.cli.composition import explain

    failures: list[BaseException] = []

    def job(config: Any) -> None:
        from omegaconf import OmegaConf

        from fusion_bench.cli.job import run_jobs

        try:
            plain: Any = OmegaConf.to_container(config, resolve=True)
            run_jobs([(plain, ())], sweep=False)
        except Exception as error:
            failures.append(error)  # Hydra would print a line of its own before handing it on

    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["fusion_bench", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing in its own way
    try:
        hydra.main(config_path=str(CONFIGS), config_name="fusion_bench", version_base="1.3")(job)()
        if failures:
            raise failures[0]
    except FusionError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, arguments) from error
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
    return 0


def _members(pool: str) -> list[str] | None:
    """The names of a pool's models in the order of its YAML, ``<index>:<name>`` where that is a list."""
    import yaml

    pool = pool.strip("'\"") or _default("modelpool")
    file = Path(pool).expanduser() if pool.endswith((".yaml", ".yml")) else CONFIGS / "modelpool" / f"{pool}.yaml"
    if not file.is_file():
        return None
    try:
        models = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("models")
    except (yaml.YAMLError, OSError, AttributeError) as error:
        raise ConfigError(f"{file}: not a readable YAML mapping: {error}") from error
    if isinstance(models, dict):
        return [str(name) for name in models]
    if isinstance(models, list):
        return [f"{i}:{m.get('name', '')}" if isinstance(m, dict) else f"{i}:{m}" for i, m in enumerate(models)]
    return None


def _default(group: str) -> str:
    text = (CONFIGS / "fusion_bench.yaml").read_text(encoding="utf-8")
    match = re.search(rf"^  - {group}: (\S+)", text, re.MULTILINE)
    return match.group(1) if match else ""
