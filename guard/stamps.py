"""What tells one state of files from another without reading them. Knows nothing of what is in them."""

from pathlib import Path

Stamp = tuple[str | int, ...]


def stamp(file: Path) -> Stamp:
    """Return what changes where a file, or what it links to, is written to or another is put in its place."""
    try:
        seen = file.stat()
    except OSError:
        return (file.name,)
    return (file.name, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def stamps(folder: Path, pattern: str = "*") -> frozenset[Stamp]:
    """Return the stamps of what stands in a folder, by a pattern of names; none where there is no such folder."""
    return frozenset(map(stamp, folder.glob(pattern)))
