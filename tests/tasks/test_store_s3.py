"""Stores on S3: a local server that speaks its protocol; the folder keeps a small pointer for DVC."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import Params
from tasks import crop, inspect, parse
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.store_location import POINTER, check_url, read_location, remove_objects
from tasks.stores import array, damage_report, open_store
from tasks.workers import Outcome
from tests.tasks.light import light_params, light_project, make_light

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")
BUCKET = "head3d-test"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """An fsspec file system with an empty bucket on a server of this process."""
    import fsspec  # type: ignore[import-untyped]

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        running = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        system = fsspec.filesystem("s3")
        system.mkdir(BUCKET)
        yield system
        running.stop()
        type(system).clear_instance_cache()


def run_here(function: Any, jobs: list[Any], **options: Any) -> None:
    for index, job in enumerate(jobs):
        options["on_result"](index, Outcome("ok", function(job), "", 1.0))


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    make_light(monkeypatch)
    monkeypatch.setattr(crop, "run_jobs", run_here)
    monkeypatch.setattr(parse, "run_jobs", run_here)


def params_at(place: str) -> Params:
    return light_params(stores=place)


def values(path: Path, *names: str) -> dict[str, np.ndarray]:
    group = open_store(path)
    return {name: array(group, name)[:] for name in (*names, "done")}


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_crop_and_parse_on_s3(bucket: Any, tmp_path: Path) -> None:
    here, there = light_project(tmp_path / "here", 5), light_project(tmp_path / "there", 5)
    place = f"s3://{BUCKET}/stores"
    for paths, params in ((here, light_params()), (there, params_at(place))):
        crop.run(params, paths, "f")
        parse.run(params, paths, "f")
    clips, masks = ("frames", "landmarks", "face_box"), ("labels", "head")
    assert_same(values(there.clips, *clips), values(here.clips, *clips))
    assert_same(values(there.masks, *masks), values(here.masks, *masks))
    assert [path.name for path in there.clips.iterdir()] == [POINTER]
    location = read_location(there.clips)
    assert location is not None
    assert location.url == f"{place}/clips.zarr/f"
    assert len(location.digest) == 64
    assert not crop.run(params_at(place), there, "f").get("seconds")  # finished is finished
    quality = light_params().quality
    assert inspect.inspect_store(there, quality) == inspect.inspect_store(here, quality)

    light_project(tmp_path / "there", 6)  # one more video: the old objects go, the pointer changes
    crop.run(params_at(place), there, "g")
    after = read_location(there.clips)
    assert after is not None
    assert after.digest != location.digest
    bucket.invalidate_cache()
    assert [name.rsplit("/", 1)[1] for name in bucket.ls(f"{BUCKET}/stores/clips.zarr")] == ["g"]
    light_project(tmp_path / "here", 6)
    crop.run(light_params(), here, "g")
    assert_same(values(there.clips, *clips), values(here.clips, *clips))


def test_the_digest_follows_the_contents_alone(bucket: Any, tmp_path: Path) -> None:
    digests = []
    for name, videos in (("a", ["v0", "v1"]), ("b", ["v0", "v1"]), ("c", ["v0", "v3"])):
        paths = light_project(tmp_path / name, 0, names=videos)
        crop.run(params_at(f"s3://{BUCKET}/{name}"), paths, "f")
        location = read_location(paths.clips)
        assert location is not None
        digests.append(location.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_damaged_object_is_made_again(bucket: Any, tmp_path: Path) -> None:
    paths = light_project(tmp_path, 5)
    params = params_at(f"s3://{BUCKET}/damaged")
    crop.run(params, paths, "f")
    before = values(paths.clips, "frames")
    name = f"{BUCKET}/damaged/clips.zarr/f/frames/c/1/0/0/0/0"
    bucket.pipe_file(name, bucket.cat_file(name)[:99])
    with pytest.raises(StageError, match="damaged: clips 3 to 5"):
        values(paths.clips, "frames")
    assert len(damage_report(paths.clips)) == 1
    crop.run(params, paths, "f")
    assert_same(values(paths.clips, "frames"), before)


def test_objects_that_are_gone(bucket: Any, tmp_path: Path) -> None:
    paths = light_project(tmp_path, 2)
    crop.run(params_at(f"s3://{BUCKET}/gone"), paths, "f")
    bucket.rm(f"{BUCKET}/gone", recursive=True)
    with pytest.raises(FileNotFoundError, match=r"points to s3://.*/gone/clips.zarr/f, where no store is"):
        open_store(paths.clips)


def test_what_does_not_work_is_said_clearly(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = light_project(tmp_path, 2)
    with pytest.raises(StageError, match="there is no bucket or folder 'nobody-has-this'"):
        crop.run(params_at("s3://nobody-has-this/x"), paths, "f")
    with pytest.raises(StageError, match="unknown kind"):
        crop.run(params_at("s4://bucket/x"), paths, "f")
    type(bucket).clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StageError, match="no credentials: set AWS_ACCESS_KEY_ID"):
        check_url(f"s3://{BUCKET}/x")
    monkeypatch.undo()
    type(bucket).clear_instance_cache()

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.url_to_fs", missing)
    with pytest.raises(StageError, match=r"pip install 'head3d\[s3\]'"):
        check_url(f"s3://{BUCKET}/x")


def test_only_what_this_pipeline_made_is_deleted(tmp_path: Path) -> None:
    for url in ("s3://bucket", "s3://bucket/prefix", "s3://bucket/clips.zarr", "s3://bucket/x/clips.zarr/a/b"):
        with pytest.raises(StageError, match="no store of this pipeline"):
            remove_objects(tmp_path / "clips.zarr", url)


def test_other_addresses(tmp_path: Path) -> None:
    """Any that fsspec knows: here a folder elsewhere, and the memory of this process."""
    for place in (f"file://{tmp_path}/elsewhere", "memory://stores"):
        paths = light_project(tmp_path / place[:4], 3)
        crop.run(params_at(place), paths, "f")
        parse.run(params_at(place), paths, "f")
        assert values(paths.masks, "head")["done"].any()
    assert (tmp_path / "elsewhere" / "clips.zarr" / "f" / "zarr.json").is_file()


def test_a_damaged_pointer(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.clips.mkdir()
    (paths.clips / POINTER).write_text(json.dumps({"url": "s3://a"})[:9], encoding="utf-8")
    with pytest.raises(StageError, match=r"location\.json is damaged"):
        open_store(paths.clips)
