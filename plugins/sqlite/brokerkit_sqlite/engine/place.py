"""Where the file lies: a write-ahead log is shared memory, which machines do not share."""

from __future__ import annotations

from pathlib import Path

_NETWORK = (
    *("9p", "afs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4"),
    *("smb2", "smb3", "smbfs", "virtiofs"),
)


def network_file_system(path: Path) -> str:
    """The type of the file system that `path` is on, if that is a network's; else empty."""
    kind = file_system(path)
    return kind if kind in _NETWORK else ""


def file_system(path: Path) -> str:
    """The type of the file system that `path` is on, as Linux tells; empty elsewhere."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, where, name, *_ = line.split(" ")
        if path.is_relative_to(where) and len(where) >= best:
            best, kind = len(where), name
    return kind
