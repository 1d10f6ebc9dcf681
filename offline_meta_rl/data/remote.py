"""Datasets that lie elsewhere: copied once from any fsspec URL into the local cache.

The copy's name holds the URL's hash and the dataset's checksum, so a dataset that changes at its
URL is copied anew. An interrupted copy goes on where it stopped, to the chunk.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from offline_meta_rl.common.files import explain_os_errors, path_lock, replacing, sync, sync_folder
from offline_meta_rl.common.progress import Advance, progress_bar
from offline_meta_rl.data.arrays import checksum
from offline_meta_rl.data.manifest import MANIFEST_FILE, ArrayEntry, Manifest
from offline_meta_rl.data.writer import dataset_root

_LOGGER = logging.getLogger(__name__)
LARGEST_MANIFEST = 64 * 2**20


def is_url(path: str | Path) -> bool:
    """Return whether a path is a URL, such as ``s3://bucket/dataset``."""
    return "://" in str(path)


def local_dataset(path: str | Path) -> Path:
    """Return a local folder with a dataset: the path itself, or a copy of what a URL names.

    Without a connection, a copy made before is used.

    Raises:
        FileNotFoundError: There is no dataset at the URL.
        ConnectionError: It cannot be read, and there is no copy.
        ImportError: The URL's protocol needs another package.
        ValueError: What arrived is not what the manifest says.
        OSError: The disk is full; what has arrived is kept.
    """
    if not is_url(path):
        return Path(path)
    url = str(path).rstrip("/")
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    name = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    try:
        remote = _Remote(url)
        text = remote.manifest()
    except ConnectionError:
        # Without the manifest the checksum is not known, so any copy of this URL will do.
        copies = [c for c in dataset_root().glob(f"{name}-*") if (c / MANIFEST_FILE).is_file()]
        if not copies:
            raise
        newest = max(copies, key=lambda copy: copy.stat().st_mtime)
        _LOGGER.warning("%s cannot be read; using the copy made before, %s.", url, newest)
        return newest
    manifest = Manifest.from_json(text, Path(f"{url}/{MANIFEST_FILE}"))
    target = dataset_root() / f"{name}-{manifest.checksum[:16]}"
    if not target.exists():
        with path_lock(target):
            if not target.exists():
                _copy(remote, manifest, text, target)
    return target


class _Remote:
    """A folder behind a URL."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self._system, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ImportError(
                f"{url}: expected the package that reads such URLs, found none ({error}). Install "
                "it, then start again."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{url}: expected a URL that fsspec knows, such as s3:// or https://; found "
                f"{error}."
            ) from error
        self._root = root.rstrip("/")

    def manifest(self) -> str:
        """Return the text of the manifest."""
        with self.open(MANIFEST_FILE) as stream, self.explained(MANIFEST_FILE):
            # What lies at a URL may be anything: never read more than a manifest can be.
            content = stream.read(LARGEST_MANIFEST)
        return content.decode("utf-8", errors="replace")

    @contextlib.contextmanager
    def open(self, file: str) -> Iterator[IO[bytes]]:
        """Open a file for reading."""
        with self.explained(file):
            stream = self._system.open(f"{self._root}/{file}", "rb")
        with stream:
            yield stream

    @contextlib.contextmanager
    def explained(self, file: str) -> Iterator[None]:
        """Say what could not be read."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"No dataset at {self.url}: expected {file} there, found none. Pass the URL of the "
                "dataset's folder."
            ) from error
        except Exception as error:  # each file system has errors of its own
            raise ConnectionError(
                f"{self.url}/{file} cannot be read ({type(error).__name__}: {error}). Start again "
                "when it can: what has arrived is kept."
            ) from error


def _copy(remote: _Remote, manifest: Manifest, text: str, target: Path) -> None:
    """Copy every array, checking each chunk, then give the copy its name."""
    partial = Path(f"{target}.partial")
    chunks = sum(len(entry.checksums) for entry in manifest.arrays.values())
    with progress_bar(f"Copying {remote.url}", chunks) as advance:
        for entry in manifest.arrays.values():
            # The manifest comes from elsewhere: a path such as ../../.bashrc must not be written.
            parts = PurePosixPath(entry.file)
            if parts.is_absolute() or ".." in parts.parts or "\\" in entry.file:
                raise ValueError(
                    f"{remote.url}/{MANIFEST_FILE}: expected files inside the dataset's folder, "
                    f"found {entry.file!r}. Do not use this dataset."
                )
            _copy_array(remote, entry, manifest.chunk_bytes, partial, advance)
    with explain_os_errors(partial):
        with replacing(partial / MANIFEST_FILE) as file:
            file.write(text.encode())
        os.rename(partial, target)
        sync_folder(target.parent)


def _copy_array(
    remote: _Remote, entry: ArrayEntry, chunk_bytes: int, partial: Path, advance: Advance
) -> None:
    """Copy one array, from the first chunk that is not there yet."""
    file = partial / entry.file
    with explain_os_errors(partial):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        local = open(file, "r+b")  # noqa: SIM115 - closed by the with statement that follows
    with local:
        start = 0
        # Chunks that are there and whole are kept; the first that differs is where to go on.
        for expected in entry.checksums:
            if checksum(local.read(chunk_bytes)) != expected:
                break
            start += 1
            advance()
        if start == len(entry.checksums):
            local.truncate(entry.bytes)
            return
        local.seek(start * chunk_bytes)
        local.truncate()
        with remote.open(entry.file) as stream:
            with remote.explained(entry.file):
                stream.seek(start * chunk_bytes)
            for number in range(start, len(entry.checksums)):
                with remote.explained(entry.file):
                    content = stream.read(min(chunk_bytes, entry.bytes - number * chunk_bytes))
                found = checksum(content)
                if found != entry.checksums[number]:
                    raise ValueError(
                        f"{remote.url}/{entry.file}: chunk {number}: expected checksum "
                        f"{entry.checksums[number]}, found {found} ({len(content)} bytes). The "
                        "file is cut short or damaged there; upload the dataset again."
                    )
                with explain_os_errors(partial):
                    local.write(content)
                advance()
        with explain_os_errors(partial):
            sync(local)
