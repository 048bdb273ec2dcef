"""The modules that a gate may call, and their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Kind = str
"""`str`, `bool`, `int`, `float`, `list`, `dict`, `raw` (any value) or `mode` (a file mode)."""


@dataclass(frozen=True)
class ModuleSpec:
    """The options of a module. `free_form` names the option that text without `=` fills."""

    options: Mapping[str, Kind]
    required: tuple[tuple[str, ...], ...] = ()
    """Each row: exactly one of these."""
    free_form: str = ""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    any_option: bool = False


def _options(text: str = "", **others: str) -> dict[str, str]:
    """`a b` are strings; keywords name the other kinds, each with its options."""
    return dict.fromkeys(text.split(), "str") | {name: kind for kind, names in others.items() for name in names.split()}


_COMMAND = _options("cmd chdir creates removes stdin executable", bool="stdin_add_newline strip_empty_ends")
_FILE = _options("owner group", mode="mode directory_mode", bool="force")

MODULES: Mapping[str, ModuleSpec] = {
    "command": ModuleSpec(
        _options(
            "cmd chdir creates removes stdin",
            bool="stdin_add_newline strip_empty_ends expand_argument_vars",
            list="argv",
        ),
        required=(("cmd", "argv"),),
        free_form="cmd",
    ),
    "shell": ModuleSpec(_COMMAND, required=(("cmd",),), free_form="cmd"),
    "script": ModuleSpec(_options("cmd chdir creates removes executable"), required=(("cmd",),), free_form="cmd"),
    "copy": ModuleSpec(
        _FILE | _options("src dest", raw="content", bool="remote_src follow"), required=(("dest",), ("src", "content"))
    ),
    "fetch": ModuleSpec(
        _options("src dest", bool="flat fail_on_missing validate_checksum"), required=(("src",), ("dest",))
    ),
    "template": ModuleSpec(
        _FILE | _options("src dest", bool="trim_blocks lstrip_blocks follow"), required=(("src",), ("dest",))
    ),
    "file": ModuleSpec(
        _options("path state src owner group", mode="mode", bool="recurse force follow"),
        required=(("path",),),
        choices={"state": ("file", "directory", "absent", "touch", "link", "hard")},
        aliases={"dest": "path", "name": "path"},
    ),
    "stat": ModuleSpec(
        _options("path checksum_algorithm", bool="follow get_checksum get_mime get_attributes"),
        required=(("path",),),
        choices={"checksum_algorithm": ("sha1", "sha256", "sha512", "md5")},
        aliases={
            "dest": "path",
            "name": "path",
            "checksum": "checksum_algorithm",
            "checksum_algo": "checksum_algorithm",
        },
    ),
    "wait_for": ModuleSpec(
        _options("host path state search_regex msg", int="port timeout delay connect_timeout sleep"),
        choices={"state": ("started", "present", "stopped", "absent")},
    ),
    "uri": ModuleSpec(
        _options(
            "url method url_username url_password follow_redirects",
            raw="body body_format",
            dict="headers",
            list="status_code",
            bool="return_content validate_certs force_basic_auth force",
            int="timeout",
        ),
        required=(("url",),),
        choices={"body_format": ("raw", "json", "form-urlencoded")},
        aliases={"user": "url_username", "password": "url_password"},
    ),
    "assert": ModuleSpec(
        _options(raw="that fail_msg success_msg", bool="quiet"), required=(("that",),), aliases={"msg": "fail_msg"}
    ),
    "debug": ModuleSpec(_options("var", raw="msg", int="verbosity")),
    "fail": ModuleSpec(_options("msg")),
    "pause": ModuleSpec(_options(float="seconds minutes", bool="echo"), required=(("seconds", "minutes"),)),
    "set_fact": ModuleSpec({}, any_option=True),
    "git": ModuleSpec(
        _options(
            "repo dest version remote refspec", int="depth", bool="clone update force bare recursive single_branch"
        ),
        required=(("repo",),),
        aliases={"name": "repo"},
    ),
    "include_tasks": ModuleSpec(_options("file"), required=(("file",),), free_form="file"),
    "import_tasks": ModuleSpec(_options("file"), required=(("file",),), free_form="file"),
    "include_role": ModuleSpec(_options("name tasks_from"), required=(("name",),)),
    "import_role": ModuleSpec(_options("name tasks_from"), required=(("name",),)),
    "meta": ModuleSpec(
        _options("free_form"),
        required=(("free_form",),),
        free_form="free_form",
        choices={"free_form": ("flush_handlers", "noop")},
    ),
    "setup": ModuleSpec({}),
    "lineinfile": ModuleSpec(
        _options(
            "path line regexp search_string insertafter insertbefore state owner group",
            mode="mode",
            bool="create backrefs firstmatch",
        ),
        required=(("path",),),
        choices={"state": ("present", "absent")},
        aliases={"dest": "path", "destfile": "path", "name": "path", "value": "line", "regex": "regexp"},
    ),
    "replace": ModuleSpec(
        _options("path regexp replace after before owner group", mode="mode"),
        required=(("path",), ("regexp",)),
        aliases={"dest": "path", "destfile": "path", "name": "path"},
    ),
    "find": ModuleSpec(
        _options(
            "contains file_type age age_stamp size checksum_algorithm",
            list="paths patterns excludes",
            bool="recurse hidden follow get_checksum use_regex read_whole_file",
            int="depth limit",
        ),
        required=(("paths",),),
        choices={
            "file_type": ("any", "directory", "file", "link"),
            "age_stamp": ("atime", "ctime", "mtime"),
            "checksum_algorithm": ("md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
        },
        aliases={
            "name": "paths",
            "path": "paths",
            "pattern": "patterns",
            "exclude": "excludes",
            "checksum": "checksum_algorithm",
            "checksum_algo": "checksum_algorithm",
        },
    ),
    "slurp": ModuleSpec(_options("src"), required=(("src",),), aliases={"path": "src"}),
    "get_url": ModuleSpec(
        _options(
            "url dest checksum url_username url_password owner group",
            mode="mode",
            dict="headers",
            bool="force validate_certs force_basic_auth",
            int="timeout",
        ),
        required=(("url",), ("dest",)),
        aliases={"username": "url_username", "password": "url_password"},
    ),
    "apt": ModuleSpec(
        _options(
            "state deb default_release upgrade",
            list="name",
            bool=(
                "update_cache purge autoremove autoclean install_recommends allow_downgrade allow_unauthenticated"
                " only_upgrade"
            ),
            int="cache_valid_time",
        ),
        choices={"state": ("present", "absent", "latest"), "upgrade": ("no", "yes", "safe", "dist", "full")},
        aliases={
            "package": "name",
            "pkg": "name",
            "update-cache": "update_cache",
            "install-recommends": "install_recommends",
            "default-release": "default_release",
        },
    ),
    "package": ModuleSpec(
        _options("state", list="name"),
        required=(("name",), ("state",)),
        choices={"state": ("present", "absent", "latest")},
    ),
    "pip": ModuleSpec(
        _options(
            "requirements version state virtualenv virtualenv_command virtualenv_python extra_args executable chdir",
            list="name",
            bool="editable virtualenv_site_packages break_system_packages",
        ),
        choices={"state": ("present", "absent", "latest", "forcereinstall")},
    ),
    "service": ModuleSpec(
        _options("name state", bool="enabled"),
        required=(("name",),),
        choices={"state": ("started", "stopped", "restarted", "reloaded")},
    ),
    "systemd": ModuleSpec(
        _options("name state", bool="enabled masked daemon_reload daemon_reexec no_block"),
        choices={"state": ("started", "stopped", "restarted", "reloaded")},
        aliases={"service": "name", "unit": "name", "daemon-reload": "daemon_reload", "daemon-reexec": "daemon_reexec"},
    ),
    "docker_compose_v2": ModuleSpec(
        _options(
            "project_src project_name state build pull recreate remove_images",
            bool=(
                "dependencies renew_anon_volumes remove_volumes remove_orphans wait ignore_build_events assume_yes"
                " check_files_existing"
            ),
            list="files profiles services env_files",
            int="timeout wait_timeout",
            dict="scale",
        ),
        required=(("project_src",),),
        choices={
            "state": ("present", "absent", "stopped", "restarted"),
            "build": ("always", "never", "policy"),
            "pull": ("always", "missing", "never", "policy"),
            "recreate": ("always", "never", "auto"),
            "remove_images": ("all", "local"),
        },
    ),
}
