"""Templates and headers are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from jitmk import resources
from jitmk.errors import JitmkError


def test_the_source_tree_has_both() -> None:
    assert (resources.templates_dir() / "megakernel.cu.j2").is_file()
    assert (resources.headers_dir() / "jitmk").is_dir()


def test_an_installed_package_prefers_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "jitmk"
    for folder in (package / "_templates", package / "_csrc_headers", tmp_path / "templates"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.templates_dir() == package / "_templates"
    assert resources.headers_dir() == package / "_csrc_headers"


def test_a_broken_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "jitmk")
    with pytest.raises(JitmkError, match="install jitmk again"):
        resources.templates_dir()
