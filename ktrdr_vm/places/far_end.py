"""The operations of a place, as a client calls them. Everything that comes back is checked here: a far end may be
hostile."""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.beneath import check_name
from ktrdr_vm.host.git import COMMIT
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.places.history import MOST_OFFERED, MOST_TIPS, Offer
from ktrdr_vm.places.request import (
    BASE,
    DOCUMENT,
    HISTORY,
    MAX_TOTAL,
    Request,
    is_digest,
    is_node,
    parse_request,
    parse_request_id,
)
from ktrdr_vm.places.request_state import RequestState, State
from ktrdr_vm.places.secret_values import Values, encode_values
from ktrdr_vm.places.service import MOST_STATES, MOST_TOGETHER, PIECE
from ktrdr_vm.places.spool import MAX_ATTEMPT_FILES

Call = Callable[..., dict[str, Any]]
# Exit codes of a run; every other number is an error of the far end.
EXIT_CODES = (0, 1, 2, 3, 4, 5, 6, 7, 130)
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")
_MAX_RUN = 4 * 1024 * 1024 * 1024
_OUTCOMES = ("", "passed", "failed", "error", "escalated", "interrupted", "cancelled")


class FarEnd:
    """One place. `call` is that of a connection, or of the service of this host."""

    def __init__(self, call: Call, name: str, close: Callable[[], object] = str, *, here: bool = False) -> None:
        self._call = call
        self._close = close
        self.here = here
        """True if its runs are in the state directory of the client."""
        self.name = name

    def close(self) -> None:
        self._close()

    def facts(self) -> dict[str, Any]:
        """What the place says about itself: text, numbers and lists of text only, bounded."""
        found = self._call("facts")
        facts: dict[str, Any] = {}
        for key, value in list(found.items())[:40]:
            if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
                facts[key[:40]] = value
            elif isinstance(value, str):
                facts[key[:40]] = value[:400]
            elif isinstance(value, list):
                facts[key[:40]] = [str(one)[:100] for one in value[:40]]
        return facts

    def find_missing(self) -> dict[str, str]:
        """What its engine lacks, by name, bounded."""
        found = self._call("missing").get("missing")
        return (
            {str(key)[:40]: str(value)[:400] for key, value in list(found.items())[:20]}
            if isinstance(found, dict)
            else {}
        )

    def list_nodes(self) -> list[str]:
        """The hosts on which its requests run; one empty name for the host that answers."""
        found = self._call("nodes").get("nodes")
        if (
            not isinstance(found, list)
            or len(found) > MOST_STATES
            or not all(one == "" or is_node(one) for one in found)
        ):
            raise self._refuse("its nodes are no list of names")
        return list(found)

    def list_bundles(self) -> list[Offer]:
        """The bundles of history that the place has, the newest first."""
        found = self._call("bundles").get("bundles")
        if not isinstance(found, list) or len(found) > MOST_OFFERED:
            raise self._refuse("the bundles are no list, or too many")
        offers = []
        for one in found:
            data = one if isinstance(one, dict) else {}
            size, digest, tips = data.get("size"), data.get("sha256"), data.get("tips")
            if (
                type(size) is not int
                or not 0 < size <= MAX_TOTAL
                or not isinstance(digest, str)
                or not is_digest(digest)
                or not isinstance(tips, list)
                or len(tips) > MOST_TIPS
                or not all(isinstance(tip, str) and COMMIT.fullmatch(tip) for tip in tips)
            ):
                raise self._refuse(f"{one!a:.100} is no bundle")
            offers.append(Offer(size, digest, tuple(tips)))
        return offers

    def send(self, folders: Sequence[Path], on_sent: Callable[[str], object] = str) -> None:
        """Send the folders of requests: large files from where an earlier try ended, and small requests together."""
        together: list[dict[str, Any]] = []
        size, sent = 0, set[str]()

        def flush() -> None:
            nonlocal size
            if together:
                self._call("receive", requests=together)
                for one in together:
                    on_sent(one["request_id"])
            together.clear()
            size = 0

        for folder in folders:
            request = parse_request((folder / DOCUMENT).read_bytes(), str(folder))
            bundles = {one.name: one.sha256 for one in request.files if one.name in HISTORY}
            names = [*(one.name for one in request.files if one.name not in HISTORY), DOCUMENT]
            own = sum((folder / name).stat().st_size for name in names)
            if own > PIECE or not sent >= set(bundles.values()):
                self._send_one(folder, request, bundles)
                on_sent(request.request_id)
                sent |= set(bundles.values())
                continue
            if size + own > PIECE or len(together) == MOST_TOGETHER:
                flush()
            size += own
            files = {name: base64.b64encode((folder / name).read_bytes()).decode("ascii") for name in names}
            together.append({"request_id": request.request_id, "bundles": bundles, "files": files})
        flush()

    def _send_one(self, folder: Path, request: Request, bundles: dict[str, str]) -> None:
        request_id = request.request_id
        answer = self._call("begin", request_id=request_id, bundles=bundles)
        if answer.get("complete") is True:
            return
        have = answer.get("have") if isinstance(answer.get("have"), dict) else {}
        for name in (*(one.name for one in request.files), DOCUMENT):
            if name == BASE:
                # Only the place has it. Without it, `commit` refuses the request.
                continue
            self._send_file(folder / name, request_id, name, (have or {}).get(name))
        self._call("commit", request_id=request_id)

    def _send_file(self, path: Path, request_id: str, name: str, have: object) -> None:
        size, tries = path.stat().st_size, 0
        offset = have if isinstance(have, int) and 0 < have <= size else 0
        with path.open("rb") as file:
            while True:
                file.seek(offset)
                data = file.read(PIECE)
                if not data and (offset or size):
                    return
                answer = self._call(
                    "put", request_id=request_id, name=name, offset=offset, data=base64.b64encode(data).decode("ascii")
                )
                there = answer.get("size")
                if there == offset + len(data):
                    offset, tries = there, 0
                else:
                    # Another try wrote a part of it.
                    tries += 1
                    if tries > 3:
                        raise self._refuse(f"{name} cannot be sent: the place has {there!a:.20} bytes of it")
                    offset = 0
                if not data:
                    return

    def start(self, request_ids: Sequence[str], values: Mapping[str, Values] | None = None) -> None:
        """Start requests, with the values of the secrets that go with them."""
        sent = {"values": encode_values(values)} if values else {}
        self._call("start", request_ids=list(request_ids), **sent)

    def render_script(self, requests: Sequence[Request]) -> str:
        """What would be submitted."""
        found = self._call("script", requests=[one.to_json() for one in requests]).get("script")
        if not isinstance(found, str):
            raise self._refuse("the script is no text")
        return found

    def states(self, request_ids: Sequence[str] | None = None) -> list[RequestState]:
        """The states of requests, by default of all, the oldest first. None that was not asked for."""
        found = self._call("states", request_ids=None if request_ids is None else list(request_ids)).get("states")
        if not isinstance(found, list) or len(found) > MOST_STATES:
            raise self._refuse("the states are no list, or too many")
        states = [self._parse_state(one) for one in found]
        names = [one.request_id for one in states]
        if len(set(names)) < len(names) or (request_ids is not None and not set(names) <= set(request_ids)):
            raise self._refuse("it names a request that was not asked for, or one twice")
        return states

    def state(self, request_id: str) -> RequestState:
        """The state of one request. UsageError if the place does not have it."""
        found = self.states([request_id])
        if not found:
            raise UsageError(
                "the place has no such request", where=f"{self.name}: {request_id}", hint="`ktrdr-vm queue` lists them"
            )
        return found[0]

    def _parse_state(self, data: object) -> RequestState:
        try:
            if not isinstance(data, dict):
                raise ValueError("a state is no object")
            kinds = {name: int if kind == "int" else str for name, kind in RequestState.__annotations__.items()}
            if data.keys() != kinds.keys() or any(type(data[name]) is not kind for name, kind in kinds.items()):
                raise ValueError("a state has other fields")
            state = RequestState(**data)
            parse_request_id(state.request_id)
            parse_instance_id(state.instance_id)
            if (
                state.state not in get_args(State)
                or state.outcome not in _OUTCOMES
                or state.exit_code not in EXIT_CODES
            ):
                raise ValueError(f"{state.state!a:.40}, {state.outcome!a:.40} and {state.exit_code} are no state")
            if not 0 <= state.attempt <= 999 or (state.run_id and not RUN_ID.fullmatch(state.run_id)):
                raise ValueError(f"attempt {state.attempt} with the run {state.run_id!a:.60}")
            if any(len(value) > 1000 for value in data.values() if isinstance(value, str)):
                raise ValueError("a text is too long")
            return state
        except (ValueError, UsageError) as error:
            raise self._refuse(f"its states are not valid: {error}") from None

    def list_files(self, request_id: str, attempt: int) -> list[tuple[str, int]]:
        """Names and sizes of the files of an attempt. UsageError for a name that leads out, and for more than the
        limits."""
        found = self._call("files", request_id=request_id, attempt=attempt).get("files")
        if not isinstance(found, list) or len(found) > MAX_ATTEMPT_FILES:
            raise self._refuse(f"the files of attempt {attempt} are no list, or more than {MAX_ATTEMPT_FILES}")
        files: list[tuple[str, int]] = []
        for one in found:
            if not (
                isinstance(one, list)
                and len(one) == 2
                and isinstance(one[0], str)
                and type(one[1]) is int
                and one[1] >= 0
            ):
                raise self._refuse(f"{one!a:.100} is no file")
            if wrong := check_name(one[0]):
                raise self._refuse(f"the file {one[0]!a:.200} is refused: {wrong}")
            if one[0] != "/".join(part for part in one[0].split("/") if part not in ("", ".")):
                raise self._refuse(f"the file {one[0]!a:.200} is refused: its name is not plain")
            files.append((one[0], one[1]))
        if len({name for name, _ in files}) < len(files):
            raise self._refuse("it names a file twice")
        if sum(size for _, size in files) > _MAX_RUN:
            raise self._refuse(f"the files of attempt {attempt} are larger than {_MAX_RUN >> 30} GiB")
        return files

    def read(self, request_id: str, attempt: int, name: str, offset: int) -> bytes:
        """At most `PIECE` bytes of a file; empty at its end."""
        data = self._call("read", request_id=request_id, attempt=attempt, name=name, offset=offset).get("data")
        return self._decode(data, name)

    def _decode(self, data: object, name: str) -> bytes:
        try:
            piece = base64.b64decode(data if isinstance(data, str) else "!", validate=True)
        except (binascii.Error, ValueError):
            raise self._refuse(f"a part of {name!a:.100} is not in base64") from None
        if len(piece) > PIECE:
            raise self._refuse(f"a part of {name!a:.100} is larger than {PIECE} bytes")
        return piece

    def download(self, request_id: str, attempt: int, name: str, size: int, descriptor: int) -> None:
        """Write the file to an open descriptor. UsageError unless it has the size that was listed."""
        done = 0
        with os.fdopen(descriptor, "wb") as file:
            while done < size and (piece := self.read(request_id, attempt, name, done)):
                done += len(piece)
                if done > size:
                    raise self._refuse(f"{name!a:.100} is larger than it was listed with")
                file.write(piece)
        if done < size:
            raise self._refuse(f"{name!a:.100} ends after {done} of {size} bytes")

    def download_small(
        self, request_id: str, attempt: int, files: dict[str, int], create: Callable[[str], int]
    ) -> list[str]:
        """Write files that fit in one message each, several in one. `create` opens one by its name. The names of the
        others."""
        large = [name for name, size in files.items() if size > PIECE // 4]
        left = [name for name, size in files.items() if size <= PIECE // 4]
        while left:
            asked, total = list[str](), 0
            while left[len(asked) :] and len(asked) < MOST_TOGETHER and total + files[left[len(asked)]] <= PIECE:
                total += files[left[len(asked)]]
                asked.append(left[len(asked)])
            left = left[len(asked) :]
            found = self._call("contents", request_id=request_id, attempt=attempt, names=asked).get("contents")
            if not isinstance(found, dict) or found.keys() != set(asked):
                raise self._refuse("its files are not those that were asked for")
            for name in asked:
                data = self._decode(found[name], name)
                if len(data) != files[name]:
                    raise self._refuse(f"{name!a:.100} has {len(data)} bytes, and was listed with {files[name]}")
                with os.fdopen(create(name), "wb") as file:
                    file.write(data)
        return large

    def cancel(self, *request_ids: str) -> None:
        self._call("cancel", request_ids=list(request_ids))

    def list_instances(self) -> list[dict[str, Any]]:
        """The instances there, as `ktrdr-vm list --json` shows them; each with a valid instance_id."""
        found = self._call("instances").get("instances")
        rows = found if isinstance(found, list) else []
        for one in rows[:MOST_STATES]:
            if not isinstance(one, dict):
                raise self._refuse("an instance is no object")
            parse_instance_id(str(one.get("instance_id"))[:100])
        return rows[:MOST_STATES]

    def _refuse(self, reason: str) -> UsageError:
        return UsageError(
            f"the place sent what it may not: {reason}",
            where=self.name,
            hint="nothing of it was stored; check that host, and that both ends have the same version of ktrdr-vm",
        )
