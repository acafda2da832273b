"""What a detector says about real photographs: the shipped weights never saw one, and this measures it.

    python -m models.yolov9.photos --folder /usr/share/darknet/data --out assets/yolov9/evidence/photos.json

The default photographs come with Debian's `darknet` and are not shipped here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from models import yolov9
from models.records import record

# What a person sees on each photograph.
CONTENT = {
    "dog.jpg": ("dog", "bicycle", "truck"),
    "person.jpg": ("person", "dog", "horse"),
    "horses.jpg": ("horse",),
    "giraffe.jpg": ("giraffe", "zebra"),
    "eagle.jpg": ("bird",),
    "kite.jpg": ("person", "kite"),
}


def report(folder: Path, confidence: float, size: int) -> dict[str, Any]:
    """Per photograph: classes on it, labels found, and which of the classes were found."""
    detector = yolov9.load("embedded")
    rows = []
    for name, present in CONTENT.items():
        found = detector.detect(folder / name, confidence=confidence, size=size)
        labels = [[label, round(float(score), 3)] for label, score in zip(found.labels, found.scores, strict=True)]
        hits = sorted(set(present) & set(found.labels))
        rows.append({"photo": name, "present": present, "found": labels, "right": hits})
    wanted = sum(len(row["present"]) for row in rows)
    return {
        "confidence": confidence,
        "size": size,
        "classes_present": wanted,
        "classes_found": sum(len(row["right"]) for row in rows),
        "photos": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/usr/share/darknet/data"))
    parser.add_argument("--confidence", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = report(args.folder, args.confidence, args.size)
    if args.out:
        record(args.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
