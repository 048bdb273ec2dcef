"""An envelope is opened only if it is exactly what this program signs: one signature, one payload type, strict JSON,
bounded."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.envelope import MAX_ENVELOPE, PAYLOAD_TYPE, make_key_id, open_envelope, sign_payload

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PAYLOAD = b'{"result": "FAILED"}'


def open_(content: bytes | str) -> dict[str, Any]:
    return open_envelope(content if isinstance(content, bytes) else content.encode(), KEY.public_key(), "a.json")


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(sign_payload(PAYLOAD, KEY)), **fields})


def sign_raw(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> str:
    """An envelope whose signature is good for any payload and type."""
    encoded = b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)
    signature = {"keyid": make_key_id(KEY.public_key()), "sig": base64.b64encode(KEY.sign(encoded)).decode()}
    return json.dumps(
        {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": [signature]}
    )


def test_what_was_signed_is_opened() -> None:
    assert open_(sign_payload(PAYLOAD, KEY)) == {"result": "FAILED"}
    assert open_(sign_raw(PAYLOAD)) == {"result": "FAILED"}


SIGNATURE = json.loads(sign_payload(PAYLOAD, KEY))["signatures"][0]
HOSTILE: dict[str, tuple[Callable[[], bytes | str], str]] = {
    "another payload type": (lambda: sign_raw(PAYLOAD, "application/json"), "payload type"),
    "a payload type that is no text": (lambda: changed(payloadType=[]), "payload type"),
    "two signatures": (lambda: changed(signatures=[SIGNATURE, SIGNATURE]), "2 signatures"),
    "a second signature of another key": (
        lambda: changed(signatures=[SIGNATURE, json.loads(sign_payload(PAYLOAD, OTHER))["signatures"][0]]), "2 signatures",
    ),
    "no signature": (lambda: changed(signatures=[]), "0 signatures"),
    "signatures that are no list": (lambda: changed(signatures=SIGNATURE), "no list of signatures"),
    "a signature of another key": (lambda: sign_payload(PAYLOAD, OTHER), "signature is not that of the key"),
    "another key under the name of ours": (
        lambda: changed(signatures=[{**json.loads(sign_payload(PAYLOAD, OTHER))["signatures"][0], "keyid": make_key_id(KEY.public_key())}]),
        "signature is not that of the key",
    ),
    "an altered payload": (lambda: changed(payload=base64.b64encode(b'{"result": "PASSED"}').decode()), "signature is not that of the key"),
    "a signature that is no text": (lambda: changed(signatures=[{"keyid": "", "sig": 5}]), "signature is not standard Base64"),
    "a short signature": (lambda: changed(signatures=[{"keyid": "", "sig": "AAAA"}]), "signature is not that of the key"),
    "a payload with other characters": (lambda: changed(payload=SIGNATURE["sig"][:8] + "\n!!"), "payload is not standard Base64"),
    "a key twice in the envelope": (
        lambda: sign_payload(PAYLOAD, KEY).replace('"payloadType"', '"payload": "e30=", "payloadType"', 1), "a key twice",
    ),
    "an infinite number in the payload": (lambda: sign_raw(b'{"result": 1e999}'), "1e999 is not JSON, or too large"),
    "a key twice in the payload": (lambda: sign_raw(b'{"result": "FAILED", "result": "PASSED"}'), "a key twice"),
    "a further field": (lambda: changed(payload2="e30="), "exactly the fields"),
    "a payload that is no object": (lambda: sign_raw(b'["PASSED"]'), "not a JSON object"),
    "a payload that is not JSON": (lambda: sign_raw(b"PASSED"), "not valid JSON"),
    "a number that is not JSON": (lambda: sign_raw(b'{"result": NaN}'), "not valid JSON"),
    "deep JSON": (lambda: "[" * 100_000, "nested more than"),
    "deep JSON with its end": (lambda: "[" * 30 + "]" * 30, "nested more than"),
    "a deep payload": (lambda: sign_raw(b'{"a":' * 1000 + b"1" + b"}" * 1000), "nested more than"),
    "large JSON": (lambda: b'{"payload": "' + b"A" * MAX_ENVELOPE + b'"}', "larger than 4 MiB"),
    "bytes that are not UTF-8": (lambda: b"\xff\xfe{}", "not valid JSON"),
    "a huge number": (lambda: '{"payload": ' + "9" * 10_000 + "}", "not valid JSON"),
    "nothing": (lambda: b"", "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_any_other_envelope_is_refused_with_a_sentence(what: str) -> None:
    make, sentence = HOSTILE[what]
    with pytest.raises(UsageError) as caught:
        open_(make())
    assert sentence in caught.value.message and caught.value.where == "a.json" and caught.value.hint
    assert len(caught.value.message) < 500


def test_brackets_in_text_are_no_nesting() -> None:
    text = json.dumps({"a": '\\"' + "[" * 100})
    assert open_(sign_raw(text.encode()))["a"].count("[") == 100
