"""The resolver has every record type before it drops its privileges, also with the dnspython of Debian 12."""

from __future__ import annotations

import dns.rdata
import dns.rdatatype
import pytest

from ktrdr_vm.egress.resolver import process


def test_every_record_type_is_loaded_in_front_by_an_older_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None:
        pass

    loaded: list[int] = []
    monkeypatch.setattr(process, "_rehearse", nothing)
    monkeypatch.delattr(dns.rdata, "load_all_types")
    monkeypatch.setattr(dns.rdata, "get_rdata_class", lambda _class, number: loaded.append(number))
    process.rehearse_resolver()
    assert set(loaded) == set(dns.rdatatype.RdataType)
