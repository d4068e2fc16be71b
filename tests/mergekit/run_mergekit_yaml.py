"""Runs configurations with mergekit. Run by the peer interpreter: run_mergekit_yaml.py FOLDER, which holds c/*.yml."""

import json
import logging
import shutil
import sys
import warnings
from pathlib import Path

import torch
from click.testing import CliRunner
from mergekit.scripts.run_yaml import main

warnings.filterwarnings("ignore")
logging.disable(logging.INFO)
torch.set_num_threads(1)
folder = Path(sys.argv[1])
errors = {}
for config in sorted((folder / "c").glob("*.yml")):
    out = folder / "theirs" / config.stem
    shutil.rmtree(out, ignore_errors=True)
    flags = ["--quiet", "--no-write-model-card", "--random-seed", "1"]
    ran = CliRunner().invoke(main, [str(config), str(out), *flags])
    if ran.exit_code:
        errors[config.stem] = f"{type(ran.exception).__name__}: {ran.exception}"
(folder / "errors.json").write_text(json.dumps(errors))
