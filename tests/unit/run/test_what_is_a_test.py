"""Which changed files the first lines of a report name as tests."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from ktrdr_vm.run.warnings import _is_test


@pytest.mark.parametrize(
    "path",
    [
        "tests/data.json", "src/test/java/AppTest.java", "test_app.py", "app_test.go", "src/app.spec.ts", "src/app.test.tsx",
        "src/__tests__/app.js", "src/__snapshots__/app.snap", "spec/models/user_spec.rb", "conftest.py", "pkg/conftest.py",
        "AppTests.cs", "OrderIT.java", "cypress/e2e/login.cy.js", "login.cy.ts", "Tests/AppTests/AppTests.swift", "testdata/in.txt",
    ],
)  # fmt: skip
def test_these_are_tests(path: str) -> None:
    assert _is_test(PurePosixPath(path))


@pytest.mark.parametrize(
    "path", ["src/app.py", "latest.py", "contest.go", "src/attestation.py", "specification.md", "src/test.py.txt"]
)
def test_these_are_not(path: str) -> None:
    assert not _is_test(PurePosixPath(path))
