"""A Hydra launcher that runs all jobs of a sweep in this process, over one opened pool and one loaded data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


class InProcessLauncher(Launcher):
    """Composes every job first, so that a bad value stops the sweep before any work, then runs them as one."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from fusion_bench.cli.job import run_jobs

        returns, jobs = [], []
        for overrides in job_overrides:
            composed = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with read_write(composed), open_dict(composed):
                del composed["hydra"]
            job = JobReturn()
            job.cfg, job.overrides = composed, list(filter_overrides(overrides))
            returns.append(job)
            plain: Any = OmegaConf.to_container(composed, resolve=True)
            jobs.append((plain, tuple(job.overrides)))
        results = run_jobs(jobs, sweep=True)
        for job, result in zip(returns, results, strict=True):
            job.return_value, job.status = result, JobStatus.COMPLETED
        return returns
