"""Write the configs of all base methods, on the benchmarks and in clip/ (`make configs`).

    python configs/generate.py

The settings of a benchmark are its base.yaml, those of a method's own protocol are in
freecp_d2/data/benchmarks/protocols.py. Here is what else a file says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from freecp_d2.clip import base_method_names
from freecp_d2.data.benchmarks.layout import BENCHMARKS
from freecp_d2.data.benchmarks.protocols import PAPER

CONFIGS = Path(__file__).resolve().parent
METHODS = base_method_names()
VIT_L14: dict[str, dict[str, Any]] = {
    "clearclip": {},
    "scclip": {
        "SCCLIP": {
            "PRE_ADJUST_IDX": 16,
            "POST_ADJUST_IDX": 6,
            "MULTI_START_IDX": 8,
            "MULTI_END_IDX": 19,
            "RES_CLS": 0.1,
        }
    },
}
"""Methods that have a config with ViT-L/14 -> keys of MODEL.CLIP, their authors' for 24 blocks."""
WINDOW_L14 = {name: 378 for name in BENCHMARKS if name != "cityscapes"}
"""Whole patches of 14 pixels, nearest to base.yaml's 384; Cityscapes' 224 are 16 of them."""


def config_files() -> dict[str, str]:
    """Path below configs/ -> text of the file."""
    files = {
        f"clip/{method}.yaml": text("base.yaml", CLIP={"METHOD": method}) for method in METHODS
    }
    for benchmark in BENCHMARKS:
        for method in METHODS:
            name = f"{benchmark}/{method}"
            files[f"{name}.yaml"] = text("base.yaml", name, CLIP={"METHOD": method})
            protocol = "paper" if method in PAPER else "same"
            alone = {"ENABLED": False, "PROTOCOL": protocol}
            files[f"{name}_base.yaml"] = text(f"{method}.yaml", f"{name}_base", FREECP=alone)
            if method in VIT_L14:
                large = {"CLIP": {"NAME": "ViT-L-14", **VIT_L14[method]}}
                if benchmark in WINDOW_L14:
                    large["FREECP"] = {"WINDOW": WINDOW_L14[benchmark]}
                files[f"{name}_vit_l14.yaml"] = text(f"{method}.yaml", f"{name}_vit_l14", **large)
    return files


def text(base: str, name: str = "", **model: Mapping[str, Any]) -> str:
    """The file with these sections of MODEL; `name`: what its output folder is called after."""
    content = {"_BASE_": base, "MODEL": model}
    if name:
        content["OUTPUT_DIR"] = f"output/{name.replace('/', '_')}"
    return f"# Written by make configs.\n{yaml.safe_dump(content, sort_keys=False)}"


def main() -> None:
    """Write the files, and remove those of these folders that the table no longer has."""
    files = config_files()
    for folder in {Path(name).parent for name in files}:
        for path in (CONFIGS / folder).glob("*.yaml"):
            if path.name != "base.yaml" and f"{folder}/{path.name}" not in files:
                path.unlink()
    for name, text in files.items():
        (CONFIGS / name).write_text(text)
    print(f"{len(files)} files in {CONFIGS}")


if __name__ == "__main__":
    main()
