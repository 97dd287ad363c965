"""Print requirements: what pyproject.toml asks for to build, at the oldest that it allows."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
    name, oldest = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
    series = ".".join([*oldest.split("."), "0"][:2])
    print(f"{name}=={series}.*")  # of a series, the last
