"""Reading YOLOv9 checkpoints, whoever wrote them, without running anything that is inside them.

Accepted (specification, sections 8, 9 and 12): safetensors files; plain `state_dict` files; the official
pickled whole models, inference ("converted") or training (dual) form, stripped or not; the files of the MIT
rewrite, with or without the auxiliary branch, bare or as Lightning checkpoints. All of them become the
float32 `state_dict` of the inference network (`gelan-*`) with the published keys.

A pickle is a program, so it is not given to `pickle` or `torch.load`: `models.yolov9.pickles` interprets the
few instructions a checkpoint needs.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.errors import BadInput, UnsafeCheckpoint, UserError, WeightsCorrupt, WeightsNotFound
from models.weights import card, read_safetensors
from models.yolov9.network import Network, build
from models.yolov9.pickles import Machine, Shell, Stored

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

# The largest published file is 140 MB (yolov9-e, training form, float16), more with its optimiser.
MAX_BYTES = 4 << 30
MAX_INFLATION = 50
MAX_PICKLE_BYTES = 64 << 20
MAX_ELEMENTS = 500_000_000
MAX_MODULES = 20_000
MAX_KEY_LENGTH = 200


@dataclass(frozen=True)
class CheckpointInfo:
    """What a state dict holds, read from its keys and shapes alone."""

    name: str  # the inference network it gives: "gelan-t" to "gelan-e"
    classes: int
    class_width: int  # width of the main head's class tower
    form: Literal["inference", "training"]
    naming: Literal["official", "mit"]
    parameters: int  # as stored, without batch norm statistics


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]  # inference form, float32, published keys
    info: CheckpointInfo  # of the file as it was stored
    class_names: list[str] | None


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The float32 `state_dict` of the inference network in a checkpoint of any accepted kind.

    Raises:
        WeightsNotFound: there is no such file.
        UnsafeCheckpoint: the file could run code; nothing in it was run.
        WeightsCorrupt: the file is damaged or incomplete.
        BadInput: the file is something else, or a form that cannot be used.
    """
    return read(path).tensors


def load_network(path: str | Path) -> tuple[Network, CheckpointInfo, list[str] | None]:
    """The inference network in eval mode, what the file was, and its class names if it has any.

    Raises: as `read_checkpoint`.
    """
    checkpoint, network = _read(Path(path))
    network.load_state_dict(checkpoint.tensors, strict=True, assign=True)
    return network.eval(), checkpoint.info, checkpoint.class_names


def read(path: str | Path) -> Checkpoint:
    """Tensors, description and class names of a checkpoint. Raises: as `read_checkpoint`."""
    return _read(Path(path))[0]


def describe(state_dict: Mapping[str, Tensor]) -> CheckpointInfo:
    """Size, form, naming and widths of a state dict as it was stored (specification, section 8).

    Raises:
        BadInput: not a YOLOv9 detector, or one whose batch norms are already folded in.
    """
    naming: Literal["official", "mit"] = "official"
    tensors: Mapping[str, Tensor] = _without_prefix(state_dict)
    parameters = sum(tensor.numel() for key, tensor in tensors.items() if not key.endswith(BUFFERS))
    if any(".heads." in key for key in tensors):
        naming, tensors = "mit", mit_to_official(tensors)
    if any(key.endswith(".cv1.conv.bias") for key in tensors):  # CBLinear's `conv.bias` has no `cv1` above it
        raise BadInput(
            "its batch norms are already fused into the convolutions. "
            "Use the file it was made from (the released files are not fused)."
        )
    form: Literal["inference", "training"] = "inference"
    if f"model.{_last_layer(tensors)}.cv5.0.2.weight" in tensors:
        form, tensors = "training", to_inference(tensors)
    size = _size(tensors)
    head = f"model.{42 if size == 'e' else 22}"
    last, first = f"{head}.cv3.0.2.weight", f"{head}.cv3.0.0.conv.weight"
    if last not in tensors or first not in tensors:
        raise BadInput(f"it has no {last if last not in tensors else first}: this is not a YOLOv9 detector.")
    return CheckpointInfo(f"gelan-{size}", tensors[last].shape[0], tensors[first].shape[0], form, naming, parameters)


def to_inference(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Training (dual) form to inference form, official keys: a pure renaming (specification, section 8).

    Raises:
        BadInput: not the training form of t, s, m, c or e.
    """
    last = _last_layer(state_dict)
    if last not in _INFERENCE_LAYERS:
        raise BadInput(f"its last layer is {last}; a training form of t, s, m, c or e ends at 29, 38 or 49.")
    layers, tensors = _INFERENCE_LAYERS[last], {}
    for key, tensor in state_dict.items():
        layer, path = _split(key)
        if layer == last:
            part, _, rest = path.partition(".")
            if part in _MAIN_HEAD:
                tensors[f"model.{layers[layer]}.{_MAIN_HEAD[part]}.{rest}"] = tensor
        elif layer in layers:
            tensors[f"model.{layers[layer]}.{path}"] = tensor
    return tensors


def mit_to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the MIT rewrite to the official ones; the form stays as it is (specification, section 12).

    Lightning's prefix is taken off, the averaged weights being preferred. The rewrite's fixed `anc2vec`
    tensors are dropped and the official fixed `dfl` ones, of the same values, added.
    """
    state_dict = _without_prefix(state_dict)
    last = max((_index(key.partition(".")[0]) for key in state_dict), default=-1)
    if last not in _OFFICIAL_LAYERS:
        raise BadInput(f"its last layer is {last}; files of the MIT rewrite end at 22, 30 or 38.")
    layers, tensors = _OFFICIAL_LAYERS[last], {}
    for key, tensor in state_dict.items():
        number, _, path = key.partition(".")
        layer = _index(number)
        if ".anc2vec." in key or layer not in layers:
            continue
        main = last != _MIT_MAIN_HEAD and layer == _MIT_MAIN_HEAD
        tensors[f"model.{layers[layer]}.{_official_path(path, main)}"] = tensor
    for name in ("dfl",) if last == _MIT_MAIN_HEAD else ("dfl", "dfl2"):
        tensors[f"model.{layers[last]}.{name}.conv.weight"] = torch.arange(16.0).view(1, 16, 1, 1)
    return tensors


def _read(path: Path) -> tuple[Checkpoint, Network]:
    """The checkpoint, and the network it fits on the meta device: shapes without memory or values."""
    tensors, class_names = _stored_tensors(path)
    try:
        info = describe(tensors)
        if info.naming == "mit":
            tensors = mit_to_official(tensors)
        if info.form == "training":
            tensors = to_inference(tensors)
        with torch.device("meta"):
            network = build(info.name, info.classes, class_width=info.class_width)
        _check_shapes(tensors, info, network)
        tensors = {key: _float32(key, tensor) for key, tensor in tensors.items()}
    except UserError as error:
        raise type(error)(f"{path.name}: {error}") from error
    if class_names is not None and len(class_names) != info.classes:
        class_names = None
    return Checkpoint(tensors, info, class_names), network


# ---- keys -------------------------------------------------------------------------------------------------

# Last layer of a training form -> {its layer: the inference network's layer} (specification, section 8).
_INFERENCE_LAYERS: dict[int, dict[int, int]] = {
    29: {i: i for i in range(22)} | {29: 22},
    38: {i + 1: i for i in range(22)} | {38: 22},
    49: {i: i for i in range(29)} | {i + 7: i for i in range(29, 42)} | {49: 42},
}
_MAIN_HEAD = {"cv4": "cv2", "cv5": "cv3", "dfl2": "dfl"}

# Last layer of an MIT file -> {its layer: the official one of the same form} (specification, section 12).
_MIT_MAIN_HEAD = 22
_OFFICIAL_LAYERS: dict[int, dict[int, int]] = {
    22: {i: i for i in range(23)},
    30: {i: i for i in range(22)} | {22: 29} | {i: i - 1 for i in range(23, 31)},
    38: {i: i + 1 for i in range(22)} | {22: 38} | {i: i for i in range(23, 39)},
}
_LIGHTNING_PREFIXES = ("ema.model.", "model.model.")  # in order of preference


def _without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _LIGHTNING_PREFIXES:
        found = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        if found:
            return found
    return dict(state_dict)


def _official_path(path: str, main: bool) -> str:
    """Path inside a layer, MIT to official; `main` for the main head of a file that has both heads."""
    parts = path.split(".")
    if parts[0] == "heads":  # heads.<level>.<tower>.<rest> -> <tower>.<level>.<rest>
        box, cls = ("cv4", "cv5") if main else ("cv2", "cv3")
        tower = {"anchor_conv": box, "class_conv": cls}.get(parts[2] if len(parts) > 2 else "", "unknown")
        return ".".join([tower, *parts[1:2], *parts[3:]])
    if parts[0] == "conv" and parts[1:2] in (["conv"], ["bn"]):  # AConv
        return ".".join(["cv1", *parts[1:]])
    renamed = []
    for i, part in enumerate(parts):
        inner = i > 0 and re.fullmatch(r"conv\d", parts[i - 1])  # RepConvN's two branches keep their names
        if re.fullmatch(r"conv\d", part) and not inner:
            renamed.append(f"cv{part[4:]}")
        else:
            renamed.append("m" if part == "bottleneck" else part)
    return ".".join(renamed)


def _split(key: str) -> tuple[int, str]:
    """`model.22.cv3.0.2.weight` to `(22, "cv3.0.2.weight")`; layer -1 for any other key."""
    model, _, rest = key.partition(".")
    number, _, path = rest.partition(".")
    return (_index(number) if model == "model" else -1), path


def _index(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else -1


def _last_layer(state_dict: Mapping[str, Tensor]) -> int:
    return max((_split(key)[0] for key in state_dict), default=-1)


def _size(tensors: Mapping[str, Tensor]) -> str:
    """Size letter of an inference form, by the table of section 8."""
    last = _last_layer(tensors)
    if last == 42 and "model.10.conv.bias" in tensors and "model.0.conv.weight" not in tensors:
        return "e"
    if last == 22 and "model.2.cv2.conv.weight" in tensors and "model.0.conv.weight" in tensors:
        stem = tensors["model.0.conv.weight"].shape[0]
        if stem in (16, 32):
            return "t" if stem == 16 else "s"
    elif last == 22 and "model.2.cv2.0.cv1.conv.weight" in tensors:
        return "c" if "model.3.cv2.conv.weight" in tensors else "m"
    raise BadInput(
        "these are not the weights of a YOLOv9 or GELAN detector of size t, s, m, c or e "
        "(published keys such as model.22.cv3.0.2.weight)."
    )


def _check_shapes(tensors: Mapping[str, Tensor], info: CheckpointInfo, network: Network) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    problems = [f"{key} is missing" for key in expected if key not in tensors]
    problems += [f"{key} is not part of the network" for key in tensors if key not in expected]
    problems += [
        f"{key} is {_times(tuple(tensor.shape))}, not {_times(expected[key])}"
        for key, tensor in tensors.items()
        if key in expected and tuple(tensor.shape) != expected[key]
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BadInput(
            f"{len(problems)} tensors do not fit {info.name} with {info.classes} classes: "
            + "; ".join(problems[:5])
            + more
        )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _float32(key: str, tensor: Tensor) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return tensor.to(torch.int64, copy=True)
    if not tensor.is_floating_point():
        raise BadInput(f"{key} is {str(tensor.dtype).removeprefix('torch.')}; weights must be floats.")
    if not tensor.isfinite().all():  # the official conversion notebook can leave NaN (section 8)
        raise WeightsCorrupt(f"{key} holds values that are not finite numbers. Convert or download it again.")
    return tensor.to(torch.float32, copy=True)


# ---- files ------------------------------------------------------------------------------------------------


def _stored_tensors(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """Tensors as stored, and class names, told apart by content and not by suffix."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        raise WeightsNotFound(f"There is no file {path.name}.") from None
    except OSError as error:
        raise BadInput(f"{path.name} cannot be read: {error.strerror}.") from None
    if not start:
        raise WeightsCorrupt(f"{path.name} is empty. Download it again.")
    if start.startswith(b"PK\x03\x04"):
        return _read_archive(path)
    if start[8:9] == b"{":
        return read_safetensors(path), _names_in_metadata(path)
    if start.startswith(b"\x80"):
        raise UnsafeCheckpoint(
            f"{path.name} is a bare pickle (PyTorch's format before 1.6) and was not opened. "
            "Save it again with a current PyTorch, or convert it to safetensors where you trust it."
        )
    raise BadInput(f"{path.name} is not a checkpoint. Give a .pt, .ckpt or .safetensors file.")


def _read_archive(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            root = _archive_root(archive, path)
            data = archive.read(f"{root}data.pkl")
            stored, class_names = _state_of(Machine(path.name).run(data), path.name)
            if sum(prod(tensor.shape) for tensor in stored.values()) > MAX_ELEMENTS:
                raise BadInput(f"{path.name} holds over {MAX_ELEMENTS:,} numbers: not a YOLOv9 checkpoint.")
            return _Storages(archive, root).tensors(stored), class_names
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, LookupError, ValueError, TypeError, ArithmeticError,
            AttributeError, EOFError, OSError, RuntimeError) as error:  # fmt: skip
        # The machine and the zip reader trip over a damaged file in any of these ways.
        raise WeightsCorrupt(f"{path.name} is damaged or incomplete. Download it again.") from error


def _archive_root(archive: zipfile.ZipFile, path: Path) -> str:
    """The folder that holds `data.pkl`, with its slash, after checking sizes and kind."""
    total, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if total > min(MAX_BYTES, MAX_INFLATION * size):
        raise UnsafeCheckpoint(f"{path.name} would unpack to {total:,} bytes from {size:,}; not opened.")
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name.split("/")[-1] == "data.pkl"]
    if len(roots) != 1:
        raise BadInput(f"{path.name} is a zip file but not a PyTorch checkpoint.")
    root = roots[0]
    if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in names):
        raise BadInput(f"{path.name} is a TorchScript program. Use the checkpoint it was made from.")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != sys.byteorder.encode():
        raise BadInput(f"{path.name} was saved with another byte order. Save it again on this machine.")
    if archive.getinfo(f"{root}data.pkl").file_size > MAX_PICKLE_BYTES:
        raise UnsafeCheckpoint(f"{path.name} has an unusually large object list; it was not opened.")
    return root


class _Storages:
    """The numbers of an archive; each storage is read once."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self.archive, self.root = archive, root
        self.read: dict[str, bytearray] = {}

    def tensors(self, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
        return {key: self.tensor(record) for key, record in stored.items()}

    def tensor(self, stored: Stored) -> Tensor:
        storage = stored.storage
        if storage.size == 0:
            return torch.empty(stored.shape, dtype=storage.dtype)
        if storage.key not in self.read:
            self.read[storage.key] = bytearray(self.archive.read(f"{self.root}data/{storage.key}"))
        flat = torch.frombuffer(self.read[storage.key], dtype=storage.dtype, count=storage.size)
        return flat.as_strided(stored.shape, stored.stride, stored.offset)


def _state_of(root: Any, file: str) -> tuple[dict[str, Stored], list[str] | None]:
    """The weights meant for inference: `ema` before `model` (section 9), Lightning's, or plain."""
    nodes = [root]
    if isinstance(root, dict):
        nodes = [root.get(key) for key in ("ema", "model", "state_dict", "model_state_dict")] + [root]
    for node in nodes:
        if isinstance(node, Shell) and "_modules" in node.state:
            return _state_dict_of(node), _class_names(node.state.get("names"))
        if isinstance(node, dict) and any(isinstance(value, Stored) for value in node.values()):
            stored = {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Stored)}
            return stored, _class_names(root.get("names"))
    raise BadInput(f"{file} holds no model and no state dict.")


def _state_dict_of(root: Shell) -> dict[str, Stored]:
    """What `state_dict()` of the pickled module would give, in its order."""
    stored: dict[str, Stored] = {}
    todo, visited = [("", root)], 0
    while todo:
        prefix, shell = todo.pop()
        visited += 1
        if visited > MAX_MODULES or len(prefix) > MAX_KEY_LENGTH:  # modules that contain themselves
            raise ValueError("too many modules")
        skipped = shell.state.get("_non_persistent_buffers_set", ())
        entries = {**shell.state.get("_parameters", {}), **shell.state.get("_buffers", {})}
        for name, value in entries.items():
            if isinstance(value, Stored) and name not in skipped:
                stored[f"{prefix}{name}"] = value
        modules = shell.state.get("_modules", {}).items()
        todo += [(f"{prefix}{name}.", m) for name, m in reversed(modules) if isinstance(m, Shell)]
    return stored


def _class_names(value: Any) -> list[str] | None:
    if isinstance(value, dict) and set(value) == set(range(len(value))):
        value = [value[i] for i in range(len(value))]
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return list(value)
    return None


def _names_in_metadata(path: Path) -> list[str] | None:
    names = card(path).get("names")
    try:
        return _class_names(json.loads(names) if isinstance(names, str) else names)
    except (ValueError, RecursionError):
        return None
