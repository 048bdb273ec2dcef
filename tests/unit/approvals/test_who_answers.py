"""Who answered an escalation, as the report and the guest are told."""

from __future__ import annotations

import os

import pytest

from ktrdr_vm.approvals import apply


@pytest.mark.parametrize(("sudo", "account", "named"), [("ann", "root", "ann"), ("", "root", "root"), ("", None, "")])
def test_who_answers_is_named_by_sudo_or_by_the_account(
    monkeypatch: pytest.MonkeyPatch, sudo: str, account: str | None, named: str
) -> None:
    def find_account() -> str:
        if account is None:
            raise KeyError("getpwuid(): uid not found")
        return account

    monkeypatch.setenv("SUDO_USER", sudo)
    monkeypatch.setattr(apply.getpass, "getuser", find_account)
    assert apply._who() == (named or str(os.getuid()))
