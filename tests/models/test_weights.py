"""Finding and reading weights: the order of places, checksums, hostile names and hostile files."""

import io
import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import weights
from models.errors import BadInput, OfflineError, UnsafeCheckpoint, UserError, WeightsCorrupt, WeightsNotFound
from models.weights import (
    Source,
    card,
    read_safetensors,
    read_state_dict,
    resolve,
    sha256_of,
    write_safetensors,
)

TENSORS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 4), "bn.count": torch.tensor(7)}
KNOWN = {"licence": "Apache-2.0", "trained_on": "emoji"}


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    """A repository's assets folder with one paper: paper/tiny.safetensors and its manifest."""
    folder = tmp_path / "assets"
    (folder / "paper").mkdir(parents=True)
    write_safetensors(folder / "paper/tiny.safetensors", TENSORS)
    digest = sha256_of(folder / "paper/tiny.safetensors")
    (folder / "paper/SHA256SUMS").write_text(f"{digest}  tiny.safetensors\n")
    monkeypatch.setattr(weights, "ASSETS", folder)
    return folder


@pytest.fixture
def brought(tmp_path) -> Path:
    folder = tmp_path / "brought"
    folder.mkdir()
    write_safetensors(folder / "tiny.safetensors", TENSORS)
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    """An importable package that ships weights and must not be imported."""
    folder = tmp_path / "site" / "lp_weights_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    write_safetensors(folder / "tiny.safetensors", TENSORS)
    monkeypatch.syspath_prepend(folder.parent)
    return folder.name


class TestResolve:
    def test_the_places_are_asked_in_order(self, assets, package, brought):
        asset, shipped = "paper/tiny.safetensors", f"{package}/tiny.safetensors"
        source = Source(**KNOWN, asset=asset, package=shipped, local="tiny.safetensors")
        assert resolve(source, weights_dir=brought).origin == "asset"
        (assets / asset).unlink()
        assert resolve(source, weights_dir=brought).origin == "package"
        source = Source(**KNOWN, asset=asset, package="not_installed/tiny.safetensors", local="tiny.safetensors")
        found = resolve(source, weights_dir=brought)
        assert (found.origin, found.path) == ("folder", brought / "tiny.safetensors")
        assert (found.licence, found.trained_on) == ("Apache-2.0", "emoji")

    def test_a_package_is_found_without_importing_it_and_may_give_a_folder(self, package):
        assert resolve(Source(**KNOWN, package=package + "/")).path.is_dir()
        assert package not in sys.modules

    def test_not_found_lists_what_was_tried_and_what_to_do(self, assets, tmp_path):
        source = Source(
            **KNOWN,
            asset="paper/none.safetensors",
            package="not_installed/none.safetensors",
            local="none.safetensors",
            hub=("owner/name", "none.safetensors", None),
        )
        with pytest.raises(WeightsNotFound) as caught:
            resolve(source, weights_dir=tmp_path)
        message = str(caught.value)
        for part in (
            "assets/paper/none.safetensors",
            "not_installed (not installed)",
            "--weights-dir",
            "owner/name",
        ):
            assert part in message
        assert str(tmp_path) not in message

    @pytest.mark.parametrize("damage", ["content", "manifest line", "manifest"])
    def test_an_asset_that_differs_from_its_manifest_is_refused(self, assets, damage):
        folder = assets / "paper"
        if damage == "content":
            (folder / "tiny.safetensors").write_bytes(b"something else")
        elif damage == "manifest line":
            (folder / "SHA256SUMS").write_text("")
        else:
            (folder / "SHA256SUMS").unlink()
        with pytest.raises(WeightsCorrupt, match="SHA"):
            resolve(Source(**KNOWN, asset="paper/tiny.safetensors"))

    def test_the_manifest_is_what_sha256sum_writes(self, assets):
        folder = assets / "paper"
        line = subprocess.run(
            ["sha256sum", "tiny.safetensors"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
        assert line == (folder / "SHA256SUMS").read_text()

    def test_a_checksum_in_the_source_holds_for_every_place(self, brought):
        good = Source(**KNOWN, local="tiny.safetensors", sha256=sha256_of(brought / "tiny.safetensors").upper())
        assert resolve(good, weights_dir=brought).origin == "folder"
        with pytest.raises(WeightsCorrupt, match="SHA-256"):
            resolve(Source(**KNOWN, local="tiny.safetensors", sha256="0" * 64), weights_dir=brought)

    @pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:/x", "a\\..\\x", "", "\0", ".."])
    def test_names_that_leave_the_folder_are_refused(self, assets, tmp_path, name):
        for source in (
            Source(**KNOWN, asset=name),
            Source(**KNOWN, package=name),
            Source(**KNOWN, local=name),
        ):
            with pytest.raises(BadInput):
                resolve(source, weights_dir=tmp_path)

    def test_links_that_leave_the_folder_are_refused(self, tmp_path, brought):
        outside = tmp_path / "outside.safetensors"
        outside.write_bytes(b"secret")
        (brought / "link.safetensors").symlink_to(outside)
        with pytest.raises(BadInput, match="link"):
            resolve(Source(**KNOWN, local="link.safetensors"), weights_dir=brought)

    @given(st.text(max_size=40))
    def test_any_name_stays_inside_or_is_a_user_error(self, tmp_path_factory, name):
        root = tmp_path_factory.getbasetemp()
        try:
            path = weights._inside(root, name)
        except UserError:
            return
        assert path.is_relative_to(root.resolve())


class TestHub:
    SOURCE = Source(**KNOWN, hub=("owner/name", "tiny.safetensors", None))

    @pytest.fixture
    def lookups(self, monkeypatch) -> list[str]:
        """No network: every name look-up is refused, and noted."""
        asked: list[str] = []

        def refuse(host, *args, **kwargs):
            asked.append(str(host))
            raise socket.gaierror(socket.EAI_AGAIN, "no network")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        return asked

    def test_offline_it_says_so(self, lookups, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(OfflineError, match=r"Hub cannot be reached.*--weights-dir"):
            resolve(self.SOURCE, allow_hub=True)
        assert lookups

    def test_it_is_never_asked_without_permission(self, lookups):
        with pytest.raises(WeightsNotFound, match="owner/name"):
            resolve(self.SOURCE)
        assert lookups == []


class TestReading:
    def test_what_is_written_is_read(self, tmp_path):
        path = tmp_path / "tiny.safetensors"
        transposed = {"t": torch.arange(6.0).reshape(2, 3).T, "half": torch.ones(2, dtype=torch.bfloat16)}
        write_safetensors(path, TENSORS | transposed, {"licence": "MIT"})
        for read in (read_safetensors, read_state_dict):
            for name, tensor in (TENSORS | transposed).items():
                torch.testing.assert_close(read(path)[name], tensor, rtol=0, atol=0)
        assert os.listdir(tmp_path) == [path.name]
        plain = tmp_path / "plain"
        plain.touch()
        assert path.stat().st_mode == plain.stat().st_mode  # readable for whom the umask says

    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "tiny.safetensors"
        write_safetensors(path, TENSORS)
        before = path.read_bytes()
        with pytest.raises(TypeError):
            write_safetensors(path, TENSORS, {"bad": 1})  # type: ignore[dict-item]
        assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]

    def test_card_joins_the_metadata_and_the_json_beside(self, tmp_path):
        path = tmp_path / "tiny.safetensors"
        write_safetensors(path, TENSORS, {"licence": "MIT", "trained_on": "x"})
        (tmp_path / "tiny.safetensors.json").write_text(json.dumps({"trained_on": "emoji", "ap50": 0.8}))
        assert card(path) == {"licence": "MIT", "trained_on": "emoji", "ap50": 0.8}
        (tmp_path / "tiny.safetensors.json").write_text("[1]")
        with pytest.raises(WeightsCorrupt, match="JSON object"):
            card(path)
        assert card(tmp_path / "other.gguf") == {}

    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
    def test_torch_files_with_tensors_are_read(self, tmp_path, wrapper):
        path = tmp_path / "tiny.pt"
        torch.save({wrapper: TENSORS, "epoch": 3} if wrapper else TENSORS, path)
        torch.testing.assert_close(read_state_dict(path), TENSORS)

    @pytest.mark.parametrize("keep", [0, 4, 100, -10])
    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_cut_files_are_corrupt(self, tmp_path, keep, suffix):
        path = tmp_path / f"tiny.{suffix}"
        if suffix == "pt":
            torch.save(TENSORS, path)
        else:
            write_safetensors(path, TENSORS)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(WeightsCorrupt, match=path.name):
            read_state_dict(path)

    @pytest.mark.parametrize("read", [read_safetensors, read_state_dict])
    def test_a_missing_file_is_named_without_its_folder(self, tmp_path, read):
        with pytest.raises(WeightsNotFound) as caught:
            read(tmp_path / "none.safetensors")
        assert "none.safetensors" in str(caught.value) and str(tmp_path) not in str(caught.value)

    def test_a_torch_file_without_a_state_dict_is_refused(self, tmp_path):
        torch.save([1, 2], tmp_path / "list.pt")
        with pytest.raises(WeightsCorrupt, match="state dict"):
            read_state_dict(tmp_path / "list.pt")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


class TestHostile:
    def refused(self, path: Path, target: Path) -> None:
        with pytest.raises(UnsafeCheckpoint, match="not opened"):
            read_state_dict(path)
        assert not target.exists()

    def test_the_payload_works(self, tmp_path):
        pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
        assert (tmp_path / "ran").exists()

    def test_a_plain_pickle(self, tmp_path):
        (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": Payload(tmp_path / "ran")}))
        self.refused(tmp_path / "x.pt", tmp_path / "ran")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_torch_file_with_a_payload(self, tmp_path, zipped):
        content = {"a": torch.ones(2), "b": Payload(tmp_path / "ran")}
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        self.refused(tmp_path / "x.pt", tmp_path / "ran")

    def test_a_pickled_module(self, tmp_path):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
        self.refused(tmp_path / "x.pt", tmp_path / "ran")

    def test_a_compressed_zip(self, tmp_path):
        plain, bomb = io.BytesIO(), tmp_path / "x.pt"
        torch.save({"a": torch.zeros(100_000)}, plain)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        self.refused(bomb, tmp_path / "ran")
