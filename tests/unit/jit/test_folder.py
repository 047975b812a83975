"""Private folders and durable files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from jitmk.errors import CacheError
from jitmk.jit import folder as folders


def test_a_new_folder_is_the_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folders.make_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_an_existing_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    folders.make_private(tmp_path / "mine")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o755


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(CacheError, match=rf"mode {mode:o}\); run 'chmod go-w .*open', or set JITMK_CACHE_DIR"):
        folders.make_private(tmp_path / "open")


def test_someone_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "current_user", lambda: os.geteuid() + 1)
    with pytest.raises(CacheError, match=f"belongs to user id {os.geteuid()}, not to {os.geteuid() + 1}"):
        folders.check_private(tmp_path)


def test_a_link_or_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(CacheError, match="is no folder"):
            folders.make_private(tmp_path / name)


def test_files_are_not_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"data")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert folders.read_file(tmp_path / "real") == b"data"
    with pytest.raises(OSError, match="link"):
        folders.read_file(tmp_path / "link")


def test_special_files_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no regular file"):
        folders.read_file(Path("/dev/null"))


def test_files_are_not_written_over_or_through_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        folders.write_file(tmp_path / "link", b"data")
    assert not (tmp_path / "target").exists()


def test_publish_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.publish({"a": b"1", "b": b"2"}, tmp_path / "entry")
    assert {path.name: path.read_bytes() for path in (tmp_path / "entry").iterdir()} == {"a": b"1", "b": b"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]

    real_write = folders.write_file

    def fail_on_b(path: Path, data: bytes) -> None:
        if path.name == "b":
            raise OSError("no")
        real_write(path, data)

    monkeypatch.setattr(folders, "write_file", fail_on_b)
    with pytest.raises(OSError, match="no"):
        folders.publish({"a": b"1", "b": b"2"}, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_publish_does_not_replace(tmp_path: Path) -> None:
    folders.publish({"a": b"1"}, tmp_path / "entry")
    with pytest.raises(OSError):
        folders.publish({"a": b"2"}, tmp_path / "entry")
    assert (tmp_path / "entry" / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
