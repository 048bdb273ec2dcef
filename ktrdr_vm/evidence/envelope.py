"""DSSE envelopes: a JSON document that is signed with Ed25519, as in-toto and cosign read it.

An envelope comes from outside. Its size and form are checked, then its signature, and only then its payload is parsed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.runs import take_finite, take_once

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE = 4 * 1024 * 1024
# Levels of lists and objects; a statement of this program has six.
MAX_DEPTH = 20


def sign_payload(payload: bytes, key: Ed25519PrivateKey) -> str:
    """The envelope of `payload` with one signature, as one line of JSON."""
    signature = {"keyid": make_key_id(key.public_key()), "sig": base64.b64encode(key.sign(_encode(payload))).decode()}
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": [signature]}
    return json.dumps(envelope) + "\n"


def open_envelope(content: bytes, key: Ed25519PublicKey, where: str) -> dict[str, Any]:
    """The payload of an envelope that `key` signed, a JSON object. UsageError says why any other one is refused."""
    envelope = parse_strictly(content, where)
    if set(envelope) != {"payload", "payloadType", "signatures"}:
        raise _refuse("it does not have exactly the fields payload, payloadType and signatures", where)
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise _refuse(f"its payload type is {str(envelope['payloadType'])[:80]!a}, not {PAYLOAD_TYPE}", where)
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        count = f"{len(signatures)} signatures" if isinstance(signatures, list) else "no list of signatures"
        raise _refuse(f"it has {count}; exactly one is expected", where)
    payload, signature = (
        _decode(envelope["payload"], "payload", where),
        _decode(signatures[0].get("sig"), "signature", where),
    )
    try:
        # Whose key it is follows from the signature; `keyid` is not authenticated and therefore not used.
        key.verify(signature, _encode(payload))
    except InvalidSignature:
        raise _refuse(
            f"its signature is not that of the key {make_key_id(key)[:16]}: the payload was changed, or another key"
            " signed it",
            where,
        ) from None
    return parse_strictly(payload, where)


def make_key_id(key: Ed25519PublicKey) -> str:
    """sha256 of the public key in DER, in hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def parse_strictly(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, within `MAX_ENVELOPE` and `MAX_DEPTH`. UsageError for anything else."""
    if len(content) > MAX_ENVELOPE:
        raise _refuse(f"it is larger than {MAX_ENVELOPE >> 20} MiB", where)
    try:
        text = content.decode("utf-8")
        if _measure_depth(text) > MAX_DEPTH:
            raise _refuse(f"its JSON is nested more than {MAX_DEPTH} levels deep", where)
        data = json.loads(text, object_pairs_hook=take_once, parse_float=take_finite, parse_constant=take_finite)
    except (ValueError, RecursionError) as error:
        raise _refuse(f"it is not valid JSON: {str(error)[:200]}", where) from None
    if not isinstance(data, dict):
        raise _refuse("it is not a JSON object", where)
    return data


def _encode(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, which is what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _decode(text: object, what: str, where: str) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise _refuse(f"its {what} is not standard Base64", where) from None


def _measure_depth(text: str) -> int:
    """The deepest nesting of brackets outside of strings, found without parsing."""
    depth = deepest = 0
    quoted = escaped = False
    for character in text:
        if quoted:
            quoted, escaped = (escaped or character != '"', not escaped and character == "\\")
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _refuse(why: str, where: str) -> UsageError:
    return UsageError(
        f"this attestation is refused: {why}",
        where=where,
        hint="get the file and the public key from the owner of the host again",
    )
