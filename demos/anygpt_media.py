"""Pictures and sounds of a conversation as files, and a whole conversation as one archive."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demos.anygpt_parts import NAMES

if TYPE_CHECKING:
    from models.anygpt.streams import Part, Turn

LARGEST = 1024  # pixels a side of a picture that is kept; its codes were made from the whole one


def smaller(turn: Turn) -> Turn:
    """The turn with pictures no larger than is shown; its ids are as they were."""
    return replace(turn, parts=tuple(_smaller(part) for part in turn.parts))


def file_of(folder: Path, number: int, parts: Sequence[Part], index: int) -> Path:
    """Where the part at `index` of the turn with that number is kept, such as "turn-2-music-1.wav"."""
    kind = parts[index].kind
    among = sum(part.kind == kind for part in parts[: index + 1])
    return folder / f"turn-{number}-{NAMES[kind]}-{among}.{'png' if kind == 'image' else 'wav'}"


def save(part: Part, path: Path) -> None:
    """Writes a picture as PNG, a sound as WAV."""
    from models.anygpt.audio import wav

    path.parent.mkdir(exist_ok=True)  # a new conversation may have removed it while the last one's reply was written
    if part.kind == "image":
        part.value.save(path)
    else:
        path.write_bytes(wav(part.value))


def archive(turns: Sequence[Turn], model: dict[str, Any], folder: Path) -> Path:
    """A ZIP file with conversation.json (parts, notes and the exact ids), and the files that `save` wrote beside it.

    model: what is said of the model in conversation.json.
    """
    path = folder / "conversation.zip"
    described = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for number, turn in enumerate(turns, 1):
            told: list[dict[str, Any]] = []
            for index, part in enumerate(turn.parts):
                entry: dict[str, Any] = {"kind": part.kind, "token_ids": list(part.token_ids)}
                entry |= {key: value for key, value in (("label", part.label), ("note", part.note)) if value}
                if part.kind == "text":
                    entry["text"] = part.value
                elif part.value is not None:
                    file = file_of(folder, number, turn.parts, index)
                    out.write(file, file.name)
                    entry["file"] = file.name
                told.append(entry)
            described.append({"role": turn.role, "parts": told, "token_ids": list(turn.ids)})
        out.writestr("conversation.json", json.dumps({"model": model, "turns": described}, indent=1))
    return path


def _smaller(part: Part) -> Part:
    if part.kind != "image" or part.value is None or max(part.value.size) <= LARGEST:
        return part
    picture = part.value.copy()
    picture.thumbnail((LARGEST, LARGEST))
    return replace(part, value=picture)
