"""The profile of a command without an argument, and shipped profiles by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.paths import find_shipped
from ktrdr_vm.inputs.profile_file import find_profile


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository inside of a folder that has a ktrdr.yaml of its own."""
    top = tmp_path / "top"
    (top / ".git").mkdir(parents=True)
    (top / "src" / "deep").mkdir(parents=True)
    (tmp_path / "ktrdr.yaml").write_text("not of this repository\n")
    return top.resolve()


@pytest.mark.parametrize("folder", ["", "src", "src/deep"])
def test_it_is_found_from_every_folder_of_the_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (repository / "ktrdr.yaml").touch()
    monkeypatch.chdir(repository / folder)
    path, workspace = find_profile(None, None)
    assert path.resolve() == repository / "ktrdr.yaml" and workspace.resolve() == repository


def test_the_nearest_one_is_taken_and_the_workspace_is_the_top(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "ktrdr.yaml").touch()
    (repository / "src" / "ktrdr.yaml").touch()
    monkeypatch.chdir(repository / "src" / "deep")
    assert find_profile(None, None) == (repository / "src" / "ktrdr.yaml", repository)


def test_it_is_not_searched_beyond_the_top(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "src")
    with pytest.raises(UsageError) as stopped:
        find_profile(None, None)
    assert (
        str(repository / "src") in str(stopped.value)
        and f"up to {repository}" in str(stopped.value)
        and "ktrdr.yaml" in str(stopped.value)
    )
    assert "ktrdr-vm init" in stopped.value.hint and "agent" in stopped.value.hint


def test_outside_of_a_repository_only_the_folder_itself_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "ktrdr.yaml").touch()
    monkeypatch.chdir(inner)
    with pytest.raises(UsageError, match=r"there is no ktrdr\.yaml in"):
        find_profile(None, None)
    monkeypatch.chdir(tmp_path)
    assert find_profile(None, None) == (Path("ktrdr.yaml"), Path())


def test_it_is_searched_in_the_workspace_that_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "ktrdr.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert find_profile(None, repository) == (repository / "ktrdr.yaml", repository)


def test_a_shipped_profile_is_found_by_its_name_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("agent", "agent.yaml"):
        assert find_profile(Path(name), None) == (find_shipped("profiles", "agent.yaml"), Path())
    for name in ("./agent/x", "unknown"):
        assert find_profile(Path(name), None) == (Path(name), Path())
    (tmp_path / "agent.yaml").touch()
    assert find_profile(Path("agent.yaml"), None) == (Path("agent.yaml"), Path())


def test_a_folder_of_that_name_hides_no_shipped_profile(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    (repository / "agent").mkdir()
    assert find_profile(Path("agent"), None)[0] == find_shipped("profiles", "agent.yaml")
    (repository / "other").mkdir()
    assert find_profile(Path("other"), None)[0] == Path("other")
    assert find_profile(Path(), None)[0] == Path()
