"""What a compose file shows: its services, the images that they pull, the ports that they publish, and the files that
they need."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

# The names that Compose itself searches for, in its order.
DEFAULT_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
_NAME = re.compile(r"(docker-)?compose([._-][A-Za-z0-9._-]+)?\.ya?ml")
# Pairs that merge keys (`<<`) may add in total.
_MOST_MERGED = 50_000
_MOST_SERVICES = 200
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_RESOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}")
_IMAGE = re.compile(r"[A-Za-z0-9._:/@-]{1,300}")
_VARIABLE = re.compile(
    r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<operator>:?[-?])(?P<rest>[^${}]*))?\}|\$(?P<plain>[A-Za-z_][A-Za-z0-9_]*)"
)
_PATH_OF_URL = re.compile(r"https?://[^/\s\"']+(/[A-Za-z0-9._~/-]*)")
# Ports of well-known servers that do not speak HTTP.
_NOT_HTTP = {22, 25, 53, 389, 1433, 1883, 3306, 4317, 5432, 5672, 6379, 9042, 9092, 11211, 27017}
_API_NAMES = ("api", "backend", "app", "web", "server", "gateway", "frontend")


@dataclass(frozen=True)
class Service:
    """One service. `ports` are those that it publishes on the host, `health_path` the path of the URL in its health
    check."""

    name: str
    image: str = ""
    builds: bool = False
    ports: tuple[int, ...] = ()
    env_files: tuple[str, ...] = ()
    health_path: str = ""

    @property
    def is_postgres(self) -> bool:
        """True if the image is one of PostgreSQL, whose client is in the container."""
        return "postgres" in self.image.rsplit("/", 1)[-1] or "postgis" in self.image.rsplit("/", 1)[-1]

    @property
    def http_port(self) -> int:
        """The first published port that may answer HTTP; 0 if there is none."""
        return next((port for port in self.ports if port not in _NOT_HTTP), 0)


@dataclass(frozen=True)
class ComposeFile:
    """A compose file by its name in the repository. Networks and volumes are those that Compose does not create, by the
    name that Docker knows them by. `in_profiles` are the names of services that `docker compose up` does not start,
    because they have profiles."""

    name: str
    services: tuple[Service, ...]
    external_networks: tuple[str, ...] = ()
    external_volumes: tuple[str, ...] = ()
    in_profiles: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return posixpath.dirname(self.name)

    @property
    def api(self) -> Service | None:
        """The service that most likely answers HTTP requests: by its name, else the first with such a port."""
        answering = [service for service in self.services if service.http_port]
        named = [service for word in _API_NAMES for service in answering if word in service.name.lower()]
        return next(iter([*named, *answering]), None)

    @property
    def database(self) -> Service | None:
        return next((service for service in self.services if service.is_postgres), None)

    @property
    def images(self) -> tuple[str, ...]:
        """The images that are pulled, without repetition and without those that a service builds."""
        built = {service.image for service in self.services if service.builds}
        return tuple(
            dict.fromkeys(service.image for service in self.services if service.image and service.image not in built)
        )

    @property
    def needs_env_file(self) -> bool:
        """True if a service reads `.env` of the folder of the file, which is usually not in the repository."""
        return any(posixpath.normpath(name) == ".env" for service in self.services for name in service.env_files)


class _Loader(yaml.SafeLoader):
    """YAML with the tags of Compose (`!reset`, `!override`), and a limit for merge keys."""

    merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > _MOST_MERGED:
            raise yaml.YAMLError("too many merged keys")


def _construct_tagged(loader: _Loader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node)
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else None


_Loader.add_multi_constructor("!", _construct_tagged)


def is_compose_name(name: str) -> bool:
    """True if the last part of a name is one that compose files have."""
    return _NAME.fullmatch(posixpath.basename(name)) is not None


def parse_compose(name: str, text: str, values: Mapping[str, str]) -> ComposeFile | None:
    """What a compose file declares, with `values` for its variables; None if the text is no compose file. What cannot
    be understood is left out."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        # PyYAML has no error of its own for a value that its tag does not allow, such as `!!bool x`.
        return None
    services = data.get("services") if isinstance(data, dict) else None
    if not isinstance(services, dict):
        return None
    listed = list(services.items())[:_MOST_SERVICES]
    named = {key: value for key, value in listed if isinstance(key, str) and _SERVICE.fullmatch(key)}
    apart = tuple(key for key, value in named.items() if _has_profiles(value))
    if len(apart) == len(named):
        apart = ()
    return ComposeFile(
        name,
        tuple(_parse_service(key, value, values) for key, value in named.items() if key not in apart),
        tuple(_find_external(data.get("networks"), values)),
        tuple(_find_external(data.get("volumes"), values)),
        apart,
    )


def _has_profiles(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("profiles"))


def _parse_service(name: str, value: Any, values: Mapping[str, str]) -> Service:
    service = value if isinstance(value, dict) else {}
    image = _resolve(service.get("image"), values)
    return Service(
        name,
        image=image if _IMAGE.fullmatch(image) else "",
        builds="build" in service,
        ports=tuple(_find_ports(service.get("ports"), values)),
        env_files=tuple(_find_env_files(service.get("env_file"), values)),
        health_path=_find_health_path(service.get("healthcheck"), values),
    )


def _find_external(value: Any, values: Mapping[str, str]) -> Iterator[str]:
    """The names of those with `external: true`, or with `external: {name: NAME}` of older files."""
    for key, one in list(value.items())[:_MOST_SERVICES] if isinstance(value, dict) else ():
        external = one.get("external") if isinstance(one, dict) else None
        if not external:
            continue
        older = external.get("name") if isinstance(external, dict) else None
        name = _resolve(one.get("name") or older or key, values)
        if _RESOURCE.fullmatch(name):
            yield name


def _resolve(value: Any, values: Mapping[str, str]) -> str:
    """A scalar with its variables replaced by `values` and by their defaults; empty for anything that is no scalar. A
    variable without a value is left as it is written."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""

    def replace(found: re.Match[str]) -> str:
        # Compose takes the default of `:-` also for a variable that is set and empty.
        kept = values.get(found["name"] or found["plain"])
        if kept or (kept is not None and found["operator"] == "-"):
            return kept
        return found["rest"] if found["operator"] in (":-", "-") else found[0]

    return _VARIABLE.sub(replace, str(value)[:1000])


def _find_ports(value: Any, values: Mapping[str, str]) -> Iterator[int]:
    for one in value[:100] if isinstance(value, list) else ():
        if isinstance(one, dict):
            published = _resolve(one.get("published"), values)
        else:
            parts = _resolve(one, values).partition("/")[0].split(":")
            published = parts[-2] if len(parts) > 1 else ""
        if re.fullmatch(r"[0-9]{1,5}", published) and 0 < int(published) < 65536:
            yield int(published)


def _find_env_files(value: Any, values: Mapping[str, str]) -> Iterator[str]:
    for one in value[:100] if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            if one.get("required") is not False:
                yield _resolve(one.get("path"), values)
        elif one is not None:
            yield _resolve(one, values)


def _find_health_path(value: Any, values: Mapping[str, str]) -> str:
    test = value.get("test") if isinstance(value, dict) else None
    words = test[:50] if isinstance(test, list) else [test]
    found = _PATH_OF_URL.search(" ".join(_resolve(word, values) for word in words))
    return found[1] if found else ""
