"""The README's pictures, from the running app: python -m tests.pictures [DEMO ...]

Runs the browser tests of the demos, which take a screenshot of what they check, and copies those that the README shows
into `assets/pictures/`, with a film of each demo. Nothing is copied of a demo whose tests fail.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT, PICTURES = ROOT / "tests" / "output", ROOT / "assets" / "pictures"
# Picture in assets/pictures, screenshot in tests/output.
SHOTS = {
    "yolov9": {"yolov9-webcam": "yolov9-webcam", "yolov9-image": "yolov9-image"},
    "pdiff": {"pdiff-generate": "pdiff-generate", "pdiff-novelty": "pdiff-novelty"},
    "longrope": {
        "longrope-passkey": "longrope-passkey",
        "longrope-search": "longrope-search",
        "longrope-evidence": "longrope-evidence",
    },
    "sdxl_lightning": {
        "sdxl_lightning-generate": "sdxl_lightning-generate-light",
        "sdxl_lightning-compare": "sdxl_lightning-compare-light",
        "sdxl_lightning-live": "sdxl_lightning-live-light",
    },
    "anygpt": {"anygpt-chat": "anygpt-chat-light"},
}
# The test that makes a demo's film.
FILMS = {
    "yolov9": "test_webcam_draws_boxes_over_the_live_picture",
    "pdiff": "test_generate_pick_draw_and_download",
    "longrope": "test_a_search_can_be_stopped_continued_and_exported",
    "sdxl_lightning": "test_the_shipped_students_follow_typing-light",
    "anygpt": "test_the_shipped_model_answers_a_spoken_request_in_all_media-light",
}


def main(demos: Sequence[str]) -> int:
    """Makes the pictures of these demos, of all without any. The number of demos that failed."""
    unknown = set(demos) - set(SHOTS)
    if unknown:
        sys.exit(f"There is no demo {', '.join(sorted(unknown))}. Choose of: {', '.join(SHOTS)}.")
    return sum(not _made(demo) for demo in demos or SHOTS)


def _made(demo: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", f"tests/browser/test_{demo}.py"]
        tested = subprocess.run(command, cwd=ROOT, env=os.environ | {"FILM_FOLDER": folder}, check=False)
        if tested.returncode:
            print(f"{demo}: a test failed, so its pictures stay as they are.", flush=True)
            return False
        PICTURES.mkdir(exist_ok=True)
        for picture, shot in SHOTS[demo].items():
            shutil.copy(OUTPUT / f"{shot}.png", PICTURES / f"{picture}.png")
        shutil.copy(Path(folder) / f"{FILMS[demo]}.gif", PICTURES / f"{demo}.gif")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
