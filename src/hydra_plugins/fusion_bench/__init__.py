"""What Hydra finds of fusion_bench: the launcher of sweeps, the source of method configurations."""
