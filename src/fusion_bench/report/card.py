"""The model card that is saved beside a fused model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.report import schema

if TYPE_CHECKING:
    from fusion_bench.cli.plan import Plan


def model_card(plan: Plan) -> str:
    """Method, hyperparameters and sources as Markdown with the front matter that the Hub reads."""
    import yaml

    sources = {"base": plan.pool.base, **(plan.pool.models if plan.method.reads_models else {})}
    lines = []
    for name, checkpoint in sources.items():
        if checkpoint is not None:
            lines.append(f"- {name}: {origin_text(checkpoint.identity)}")
    front = yaml.safe_dump({"library_name": "transformers", "tags": ["merge", "fusion_bench"]}, sort_keys=False)
    values = yaml.safe_dump({"method": plan.method.plain(), "seed": plan.job.seed}, sort_keys=False)
    version = schema.versions().get("fusion-bench", "")
    return (
        f"---\n{front}---\n\n# {plan.method.key()} of {plan.pool.name.rstrip('/').rsplit('/', 1)[-1]}\n\n"
        f"Fused with fusion_bench {version}. Source of the method: {plan.method.source}.\n\n"
        f"```yaml\n{values}```\n\n## Models\n\n" + "\n".join(lines) + "\n"
    )


def origin_text(identity: Mapping[str, Any]) -> str:
    """Hub name and commit, or the folder's own name: a card is published, paths of a machine are not."""
    path = Path(str(identity.get("path", "in memory")))
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    if cached is not None and identity.get("commit"):
        return f"`{cached.removeprefix('models--').replace('--', '/')}` at `{identity['commit']}`"
    return f"`{path.name}`"
