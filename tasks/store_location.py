"""Where a store's arrays lie: in its own folder, or at an address (`s3://bucket/folder`, any that fsspec knows).

With `runtime.stores` set, the folder `data/NAME.zarr` holds only `location.json`: the address, the fingerprint of the
run that wrote it, and a digest of its contents. DVC tracks that file, so `dvc.lock` changes when the contents do.
Credentials come from the environment (for S3: AWS_ACCESS_KEY_ID and so on, AWS_ENDPOINT_URL, or ~/.aws), never from
params.yaml.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from tasks.disk import whole_file
from tasks.errors import StageError

POINTER = "location.json"
EXTRAS = {"s3": "head3d[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""What to install for an address, by its scheme."""
RUN_DIGITS = 16
"""The objects of a run lie below this much of its fingerprint, so that a new run never mixes with an old one."""


@dataclass(frozen=True)
class Location:
    """What `location.json` says; `digest` is empty until the store is finished."""

    url: str
    fingerprint: str
    digest: str


def read_location(path: Path) -> Location | None:
    """Where the arrays of the store `path` lie; None: in the folder itself.

    Raises:
        StageError: The file is damaged.
    """
    file = path / POINTER
    if not file.is_file():
        return None
    try:
        return Location(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise StageError(
            f"{file} is damaged; `dvc checkout --force {path}` brings it back, or delete {path} to make the store again"
        ) from None


def write_location(path: Path, location: Location) -> None:
    """Write `location.json`, in one step."""
    path.mkdir(parents=True, exist_ok=True)
    with whole_file(path / POINTER, shared=True) as partial:
        partial.write_text(json.dumps(asdict(location), indent=2) + "\n", encoding="utf-8")


def new_url(stores: str, path: Path, fingerprint: str) -> str:
    """Address for a new store below `runtime.stores`."""
    return f"{stores.rstrip('/')}/{path.name}/{fingerprint[:RUN_DIGITS] or 'none'}"


def zarr_store(path: Path, read_only: bool) -> Store:
    """The Zarr storage of the store `path`, here or at its address.

    Raises:
        StageError: Nothing can be reached at the address.
    """
    location = read_location(path)
    if location is None:
        return LocalStore(path, read_only=read_only)
    with clear_errors(location.url):
        options = {"auto_mkdir": True} if location.url.startswith(("file:", "local:")) else None
        return FsspecStore.from_url(location.url, storage_options=options, read_only=read_only)


def check_url(url: str) -> None:
    """Write a small object below the address and delete it again.

    Raises:
        StageError: That does not work; the text says why.
    """
    with clear_errors(url):
        system, root = _system(url)
        probe = f"{root}/.head3d-{uuid.uuid4().hex}"
        system.pipe_file(probe, b"head3d")
        system.rm_file(probe)


def remove_objects(path: Path, url: str) -> None:
    """Delete everything below the address of a run of the store `path`.

    Raises:
        StageError: The address is not one that `new_url` makes: nobody wants to lose a bucket to a wrong file.
    """
    if not re.fullmatch(rf"[a-z0-9+]+://.+/[^/]+\.zarr/[0-9a-zA-Z_-]{{1,{RUN_DIGITS}}}", url):
        raise StageError(f"{path / POINTER} names {url}, which is no store of this pipeline; delete {path} yourself")
    with clear_errors(url):
        system, root = _system(url)
        with suppress(FileNotFoundError):
            system.rm_file(f"{root}/zarr.json")  # first: without it the rest is no store
        if system.exists(root):
            system.rm(root, recursive=True)


def remove_store(path: Path) -> None:
    """Delete a store, wherever it lies; killed in the middle, what is left is no store any more."""
    location = read_location(path)
    if location is not None:
        remove_objects(path, location.url)
    (path / "zarr.json").unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def clear_errors(url: str, missing: type[Exception] | None = None) -> Iterator[None]:
    """Inside, what fsspec and its clients raise becomes a StageError that says what to do.

    Args:
        url: The address; empty: a local folder, whose errors pass.
        missing: This error passes, too.
    """
    try:
        yield
    except Exception as error:
        if not url or isinstance(error, StageError) or (missing and isinstance(error, missing)):
            raise
        text = _explained(url, error)
        if not text:
            raise
        raise StageError(f"runtime.stores: {url}: {text}. Finished work is kept") from error


def _explained(url: str, error: Exception) -> str:
    scheme, _, rest = url.partition("://")
    name, module = type(error).__name__, type(error).__module__
    if isinstance(error, ImportError):
        return f"a package is missing: pip install '{EXTRAS.get(scheme, scheme)}' ({error})"
    if isinstance(error, FileNotFoundError):
        return (
            f"there is no bucket or folder '{rest.split('/', 1)[0]}' ({error}); create it, or correct the address "
            "(and AWS_ENDPOINT_URL, if it is not Amazon's own S3)"
        )
    if isinstance(error, PermissionError):
        return f"access is refused ({error}); check the credentials"
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
    if isinstance(error, ValueError) and "rotocol" in str(error):
        return f"an address of an unknown kind ({error})"
    if isinstance(error, OSError) or module.startswith(("botocore", "aiobotocore", "aiohttp")):
        return f"cannot be reached ({name}: {error}); check the address, AWS_ENDPOINT_URL and the network"
    return ""


def _system(url: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    options = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {}
    system, root = fsspec.url_to_fs(url, **options)
    system.invalidate_cache()
    return system, root
