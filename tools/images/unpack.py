"""Unpack a tar under a root without ever leaving it: links are followed as they count inside, an absolute one from the root itself.

Python's own extraction follows links as this machine sees them: a base whose /var/run links to /run would have its files land in ours.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from pathlib import Path, PurePosixPath

from swingbus.faults import InvalidInput

_LINKS_MAX = 40


def resolve(root: Path, path: Path) -> Path:
    """Follow every link of a path below the root, as a process would whose root it is."""
    parts = list(path.relative_to(root).parts)
    at, followed = root, 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            at = at.parent if at != root else root
            continue
        step = at / part
        if not step.is_symlink():
            at = step
            continue
        followed += 1
        if followed > _LINKS_MAX:
            raise InvalidInput(f"{path} goes round in links; name another base")
        target = step.readlink()
        if target.is_absolute():
            at = root
        parts = [word for word in target.parts if word != "/"] + parts
    return at


def place(root: Path, name: str) -> Path:
    """Return where an entry of that name belongs: its folder with links followed, its own name as it is."""
    told = PurePosixPath("/") / name
    return resolve(root, root / str(told.parent).lstrip("/")) / told.name


def unpack_entry(tar: tarfile.TarFile, entry: tarfile.TarInfo, root: Path) -> None:
    """Write one entry over what is there; devices are passed over, owners are not kept and nothing becomes set-uid."""
    path = place(root, entry.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.isdir():
        if path.is_symlink() and resolve(root, path).is_dir():
            return
        if not path.is_dir():
            remove(path)
            path.mkdir()
        path.chmod(0o755 | entry.mode & stat.S_ISVTX)
        return
    if entry.issym():
        remove(path)
        path.symlink_to(entry.linkname)
    elif entry.islnk():
        source = place(root, entry.linkname)
        remove(path)
        os.link(source, path, follow_symlinks=False)
    elif entry.isfile():
        content = tar.extractfile(entry)
        assert content is not None
        remove(path)
        with content, path.open("wb") as file:
            shutil.copyfileobj(content, file)
        path.chmod(0o755 if entry.mode & stat.S_IXUSR else 0o644)


def remove(path: Path) -> None:
    """Remove whatever is at a path, if anything is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
