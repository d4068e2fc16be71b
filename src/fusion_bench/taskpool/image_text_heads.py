"""Zero-shot heads: the classes of a task as the text tower of the pre-trained CLIP sees their names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.errors import CheckpointError
from fusion_bench.taskpool import answer_cache
from fusion_bench.taskpool.image_clip import ClipFolder
from fusion_bench.taskpool.image_heads import Head
from fusion_bench.taskpool.image_tasks import prompts

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint

# Part of the key of kept heads: to be raised by any change of how they are made.
_VERSION: Final = 1
_TEXT: Final = ("text_model.", "text_projection.")
_POSITIONS: Final = "text_model.embeddings.position_ids"


class TextHeads:
    """Makes heads with the text tower, projection and scale of one CLIP, which is read when a head is not kept."""

    def __init__(self, source: ClipFolder) -> None:
        self.source = source
        self._checkpoint: Checkpoint = open_checkpoint(source.folder)
        self._tower: Any = None
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Over the values of the text tower and the files of the tokenizer."""
        import torch
        import xxhash

        if self._digest is None:
            whole = xxhash.xxh3_128()
            for name in self._names():
                tensor = self._checkpoint[name].contiguous()
                whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
                whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            self._digest = f"{whole.hexdigest()}-{self._tokenizer().digest()[:32]}"
        return self._digest

    def head(self, classes: Sequence[str], templates: Sequence[str], projected: bool, keep: bool = True) -> Head:
        """The head of a task. `projected`: whether the tower's features already lie in the joint space.

        A class is the mean of its prompts' embeddings, each of unit length, brought to unit length again
        (Radford et al., arXiv:2103.00020, section 3.1.4).
        """
        import torch

        projection = None if projected else self.projection()
        scale = float(self._tensor("logit_scale").double().exp())
        weight = self._kept(classes, templates) if keep else self._made(classes, templates)
        return Head(weight.to(torch.float32), projection, scale)

    def projection(self) -> torch.Tensor:
        """From the features of the vision tower into the joint space."""
        return self._tensor("visual_projection.weight")

    def _kept(self, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        from safetensors.torch import load_file, save_file

        content = [_VERSION, self.digest, list(classes), list(templates)]
        key = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
        file = answer_cache.folder().parent / "heads" / f"{key}.safetensors"
        try:
            found: torch.Tensor = load_file(file)["weight"]
            if len(found) == len(classes):
                return found
        except Exception:  # absent, or cut off by an interruption: made again
            pass
        made = self._made(classes, templates)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"weight": made}, draft)
            draft.replace(file)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        return made

    def _made(self, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        import torch
        from torch.nn.functional import normalize

        texts = [text for name in classes for text in prompts(templates, name)]
        embedded = normalize(self._embedded(texts), dim=-1)
        means = embedded.reshape(len(classes), len(templates), -1).mean(dim=1)
        weight: torch.Tensor = normalize(means, dim=-1).contiguous()
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"{self.source.asked}: the text tower gives no finite embeddings.")
        return weight

    def _embedded(self, texts: Sequence[str]) -> torch.Tensor:
        """The projected text embeddings in float32. Prompts of one length go together, so nothing is padded."""
        import torch

        from fusion_bench.parallel import one_torch_thread

        module = self._text_tower()
        limit = int(module.config.max_position_embeddings)
        rows = self._tokenizer().load()(list(texts), truncation=True, max_length=limit)["input_ids"]
        by_length: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            by_length.setdefault(len(row), []).append(place)
        found = torch.empty(len(texts), module.text_projection.out_features)
        with torch.inference_mode(), one_torch_thread():
            for places in by_length.values():
                for start in range(0, len(places), 64):
                    group = places[start : start + 64]
                    found[group] = module(torch.tensor([rows[place] for place in group])).text_embeds
        return found

    def _text_tower(self) -> Any:
        if self._tower is None:
            import torch
            from transformers import AutoConfig, CLIPTextModelWithProjection

            config = AutoConfig.from_pretrained(self.source.folder).text_config
            state = {name: self._tensor(name) for name in self._names()}
            config.projection_dim = state["text_projection.weight"].shape[0]
            tower: Any = CLIPTextModelWithProjection
            with torch.random.fork_rng(devices=[]):
                module = tower(config)
            try:
                module.load_state_dict(state, strict=True)
            except RuntimeError as fault:
                raise CheckpointError(f"{self.source.asked}: the text tower cannot be read: {fault}") from fault
            self._tower = module.float().eval().requires_grad_(False)
        return self._tower

    def _names(self) -> list[str]:
        found = [name for name in self._checkpoint if name.startswith(_TEXT) and name != _POSITIONS]
        if not any(name.startswith(_TEXT[1]) for name in found):
            raise CheckpointError(f"{self.source.asked}: holds no text_projection, so it is no whole CLIP.")
        return found

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._checkpoint:
            raise CheckpointError(f"{self.source.asked}: holds no {name}, so it is no whole CLIP.")
        return self._checkpoint[name].float()

    def _tokenizer(self) -> Any:
        from fusion_bench.taskpool.tokenizer import TokenizerSource

        return TokenizerSource(self.source.asked, self.source.folder)
