"""The whole recipe of the embedded model, in order; each part is resumable and says what it costs.

    python -m models.sdxl_lightning.train

About three hours of one processor core as shipped: the pool of scenes and the latents' basis, the autoencoder, the
teacher, the five stages of distillation, then the files in `assets/sdxl_lightning` and their measures. Each part can be
run alone with its own options: see `--help` of the modules named here.
"""

from __future__ import annotations

import subprocess
import sys

from models.sdxl_lightning.pool import POOL

PARTS = ("pool", "autoencoder", "teacher", "distil", "ship", "evaluate quality", "evaluate grid")


def main() -> None:
    for part in PARTS:
        if part == "pool" and POOL.exists():
            continue  # the only part that would start again
        name, *options = part.split()
        print(f"== {part}", flush=True)
        subprocess.run([sys.executable, "-m", f"models.sdxl_lightning.{name}", *options], check=True)


if __name__ == "__main__":
    main()
