"""The instance_id and every name that derives from it. Pure: the same id gives the same names on every host."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ktrdr_vm.errors import UsageError

# A DNS label of lower-case ASCII, which is also a valid hostname, Compose project, Git ref component and file name.
RULE = "1 to 63 characters of a-z, 0-9 and -, not beginning or ending with -"
_VALID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
DOMAIN_PREFIX = "ktrdr-"
TAP_PREFIX = "kv"
TABLE_PREFIX = "ktrdr_"
# Of the host names of instances in OpenSSH's wildcard block.
SSH_SUFFIX = ".ktrdr"
# Namespace of the metadata element in the XML of a domain.
METADATA_NAMESPACE = "urn:ktrdr-vm:instance:1"
# Users of each slot: proxy and resolver, two for telemetry, one for escalations.
_USERS = 5
_DETACHED = "detached"
_NAMESPACE = "0b1c7a39-9d2e-5f0e-8a44-6f1f7b6f2a10"


@dataclass(frozen=True)
class InstanceUsers:
    """The users from which each instance of a state directory, in its slot, has some of its own."""

    first: int
    slots: int

    @property
    def last(self) -> int:
        return self.first + _USERS * self.slots - 1


# A range that is unused according to systemd's UIDS-GIDS document.
HOST_USERS = InstanceUsers(1_900_000_000, 2**14)
# Among the 65,536 ids of a world, between those of people and those of packages.
WORLD_USERS = InstanceUsers(20_000, 2**13)


@dataclass(frozen=True)
class Identity:
    """A valid instance_id."""

    instance_id: str

    @property
    def token(self) -> str:
        """Ten hexadecimal digits for short names: 40 bits, so that the names of instances on one host do not
        collide."""
        return _digest(self.instance_id, 10)

    @property
    def domain(self) -> str:
        return f"{DOMAIN_PREFIX}{self.instance_id}"

    @property
    def namespace(self) -> str:
        """The network namespace, as `ip netns` lists it."""
        return f"{DOMAIN_PREFIX}{self.instance_id}"

    @property
    def uuid(self) -> str:
        # Imported on use, as `hashlib` below: `ktrdr-vm proxy` needs the namespace only.
        from uuid import UUID, uuid5

        return str(uuid5(UUID(_NAMESPACE), self.instance_id))

    @property
    def tap(self) -> str:
        """At most 15 characters, the kernel's limit for an interface name."""
        return f"{TAP_PREFIX}{self.token}"

    @property
    def table(self) -> str:
        return f"{TABLE_PREFIX}{self.token}"

    def mark(self, home: str) -> str:
        """The mark of a namespace, a tap and an nft table: the instance and the state directory."""
        return f"ktrdr-vm instance_id={self.instance_id} home={make_home_token(home)}"

    @property
    def ref_prefix(self) -> str:
        return f"refs/ktrdr/{self.instance_id}/"


def make_home_token(home: str) -> str:
    """Eight characters that identify a state directory. Objects of other state directories are never changed."""
    return _digest(home, 8)


def is_instance_id(text: str) -> bool:
    return _VALID.fullmatch(text) is not None


def parse_instance_id(text: str) -> Identity:
    """Check an instance_id. Nothing is normalised, so that two spellings never are one instance."""
    if not isinstance(text, str) or not is_instance_id(text):
        shown = ascii(text)[:80]
        raise UsageError(f"{shown} is not an instance_id", hint=f"an instance_id has {RULE}")
    return Identity(text)


def derive_instance_id(repository: str, branch: str) -> Identity:
    """`ktrdr`, `feat/operation-metrics` as `ktrdr--feat-operation-metrics`.

    Of all names that would read alike, one is plain: a branch without a hyphen, or with a slash in place of the first
    one. Every other one is marked with a digest of the whole, as is one that had to be cut: two branches are two
    instances.
    """
    slug = _slug(branch)
    plain = f"{_slug(repository) or 'repo'}--{slug or _DETACHED}"
    # A branch of that name is not a detached HEAD, whose branch is empty.
    if len(plain) > 63 or branch == _DETACHED or repository != _slug(repository) or branch != slug.replace("-", "/", 1):
        digest = _digest(f"{repository}\0{branch}", 6)
        plain = f"{plain[:56].rstrip('-')}-{digest}"
    return parse_instance_id(plain)


def derive_verification_id(identity: Identity) -> Identity:
    """The instance that verifies the commits of the workload of another one: `ktrdr--feat-x--verify` for
    `ktrdr--feat-x`."""
    plain = f"{identity.instance_id}--verify"
    if len(plain) > 63:
        plain = f"{identity.instance_id[:40].rstrip('-')}-{identity.token}--verify"
    return parse_instance_id(plain)


def _digest(text: str, length: int) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
