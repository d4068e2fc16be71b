"""Adapters as results: pools of adapters fused into one adapter, adapters extracted from full models."""

from fusion_bench.adapter.adapter import Adapter
from fusion_bench.adapter.extract import extract_adapter
from fusion_bench.adapter.fuse import fuse_adapters
from fusion_bench.adapter.write import save_adapter

__all__ = ["Adapter", "extract_adapter", "fuse_adapters", "save_adapter"]
