"""Project templates: a playbook runs once in a sandbox, and every later sandbox of the project starts from its result.

They are built only from a branch of the owner's policy without uncommitted changes, and never from commits of an agent.
They are found by the content of their inputs, so that a branch with the same inputs uses them too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.guest.loose_names import refuse_special
from ktrdr_vm.host import process
from ktrdr_vm.host.beneath import Place, open_file
from ktrdr_vm.host.git import BOUNDS, open_view
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.host.rights import set_rights
from ktrdr_vm.identity import Identity
from ktrdr_vm.images.ensure import ensure_image
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.references import find_playbook, read_playbook
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.inputs.trusted import list_refs
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.plan.facts import TemplateFacts
from ktrdr_vm.plan.plan import Plan, plain
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.model import Prepare
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.key import Project
from ktrdr_vm.templates.store import find_template, fits

# Incremented if the steps around the playbook change.
FORMAT = 2
MAX_KEY_FILE = 64 * 1024 * 1024
REBASE_LIMIT = 1800.0

Note = Callable[[str], None]

# Parts of the profile that the preparation must not have or does not need.
_LEFT_OUT = ("secrets", "mounts", "prepare", "workload", "gates", "artifacts", "environment", "telemetry", "verify")

# The workspace is removed, because each sandbox gets its own. Caches of Docker and package clients are kept.
_TIDY = """set -eu
docker ps -aq | xargs -r docker rm -f >/dev/null
systemctl stop docker.service docker.socket containerd.service 2>/dev/null || true
find "$TARGET" -mindepth 1 -delete
rm -rf /var/tmp/* /tmp/* /etc/ktrdr
fstrim / 2>/dev/null || true
sync
"""


def find_best(home: Home, gathered: Gathered, plan: Plan, image: Image, note: Note) -> TemplateFacts | None:
    """The template for a fork of this plan; None if it must be built and may be."""
    wanted = plan.profile.prepare
    if wanted is not None and gathered.repository is not None:
        project = _describe(home, gathered, gathered.repository, wanted, plan, image, None, note)
        found = find_template(home, plan, image, project)
        if found is not None:
            return found
        refusal = _distrust(gathered, gathered.repository, wanted)
        if not refusal:
            return None
        note(f"the project is not prepared: {refusal}")
    return find_template(home, plan, image)


def build_best(home: Home, gathered: Gathered, plan: Plan, image: Image, libvirt: Libvirt, note: Note) -> TemplateFacts:
    """Build the template of the project, and before that the template of its shape."""
    base = find_template(home, plan, image) or build_template(home, plan, image, libvirt, progress=note)
    wanted, repository = plan.profile.prepare, gathered.repository
    if wanted is None or repository is None or _distrust(gathered, repository, wanted):
        return base
    project = _describe(home, gathered, repository, wanted, plan, image, libvirt, note)
    return build_template(home, plan, image, libvirt, progress=note, project=project)


def warm_up(home: Home, gathered: Gathered, libvirt: Libvirt, note: Note) -> str:
    """Build what a first run of this profile would build: its image, and the template with its prepared project.

    The key of the template; empty for a stock image, which has none.
    """
    home.create()
    plan = gathered.plan
    sources = gathered.policy.image_sources
    image = ensure_image(plan.profile.image, gathered.recipe, home.images, progress=note, sources=sources)
    if not fits(plan):
        return ""
    return (find_best(home, gathered, plan, image, note) or build_best(home, gathered, plan, image, libvirt, note)).key


def _distrust(gathered: Gathered, repository: Repository, wanted: Prepare) -> str:
    """The reason why no template may be prepared from the current repository, or an empty text."""
    if repository.ref:
        return "the commit is not that of a trusted branch"
    refs = (*list_refs(gathered.policy, repository), *gathered.policy.prepare_refs)
    if repository.branch not in refs:
        return (
            f"{repository.branch or 'a detached HEAD'} is not in prepare.refs of the owner's policy"
            f" ({', '.join(refs) or 'none'})"
        )
    files = [wanted.playbook, *wanted.key, *_list_played(repository, wanted)]
    tracked = [f":(literal){name}" for name in files if (repository.root / name).exists()]
    with open_view(repository.place) as view:
        # The working tree is compared with the commit, so staged changes count as well.
        refuse_special(view)
        options = ("--quiet", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
        if view.git("diff", *options, "HEAD", "--", check=False, bounds=BOUNDS).exit_code:
            return "the repository has uncommitted changes"
        known = view.git("ls-files", "--error-unmatch", "--", *tracked, check=False) if tracked else None
    if known is not None and known.exit_code != 0:
        return "its playbook, a file that this reads or sends, or a file of prepare.key is not committed"
    return ""


def _list_played(repository: Repository, wanted: Prepare) -> list[str]:
    """The files of the repository that the playbook reads and sends, by their names from its root."""
    playbook = read_playbook(find_playbook(wanted.playbook, repository.root), repository.root)
    folder = Path(playbook.folder)
    if not folder.is_relative_to(repository.root):
        return []  # a shipped one
    within = folder.relative_to(repository.root)
    return [str(within / name) for name, digest in playbook.files.items() if digest and not name.endswith("/")]


def _describe(
    home: Home,
    gathered: Gathered,
    repository: Repository,
    wanted: Prepare,
    plan: Plan,
    image: Image,
    libvirt: Libvirt | None,
    note: Note,
) -> Project:
    playbook = read_playbook(find_playbook(wanted.playbook, repository.root), repository.root)
    ingredients = {
        "format": FORMAT,
        "tidy": _TIDY,
        # The repository on this host, because the playbook runs its files, and another one may have the same name.
        "repository": _identify(repository),
        "playbook": playbook.digest,
        "files": {name: _digest(repository.place, name) for name in wanted.key},
        # The result depends on the allowed egress.
        "egress": plain([*plan.rules, *plan.profile.limited]),
        "workspace": plain(plan.profile.workspace),
        "vars": plain(plan.profile.vars),
    }
    digest = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()

    def make_disk(target: Path) -> None:
        assert libvirt is not None, "a project that was described to be found cannot be built"
        # Imported late: it runs a playbook, and a fork of what is prepared does not.
        from ktrdr_vm.templates.preparation import prepare_disk, refuse_secret

        note(f"preparing the project {plan.profile.name} once")
        source = {key: value for key, value in plan.source.items() if key not in _LEFT_OUT} | {"mode": "sandbox"}
        preparing = Plan(build_profile(source), plan.facts, Identity(f"prepare--{digest[:12]}"), source)
        instance = Instance(home, preparing.identity, libvirt)
        create = partial(
            instance.create,
            preparing,
            read_secret=refuse_secret,
            mount_roots=(),
            template=find_template(home, plan, image),
            most_instances=gathered.policy.most_instances,
        )
        prepare_disk(instance, create, repository, playbook, _TIDY, note, target)
        # Rebased onto the image, so that the template of the shape can be removed.
        backing = ["-F", image.disk_format, "-b", image.disk]
        process.run(["qemu-img", "rebase", "-q", "-f", "qcow2", *backing, target], timeout=REBASE_LIMIT)
        set_rights(target, home.root)

    made_from = {"repository": str(repository.root), "branch": repository.branch, "commit": repository.commit}
    made_from["tree"] = _find_tree(repository)
    return Project(plan.profile.name, digest, make_disk, made_from)


def _identify(repository: Repository) -> dict[str, object]:
    """An id of the repository on this host: linked worktrees share it, a clone or a copy has another."""
    common = repository.common or repository.root
    facts = common.stat()
    return {"path": str(common), "device": facts.st_dev, "inode": facts.st_ino, "owner": facts.st_uid}


def _find_tree(repository: Repository) -> str:
    with open_view(repository.place) as view:
        return view.git("rev-parse", "--verify", "--end-of-options", f"{repository.commit}^{{tree}}").text.strip()


def _digest(root: Place, name: str) -> str:
    """sha256 of a file in the workspace; a missing file has a value as well."""
    try:
        with os.fdopen(open_file(root, name), "rb") as file:
            content = file.read(MAX_KEY_FILE + 1)
    except FileNotFoundError:
        return "absent"
    except (OSError, KtrdrError) as error:
        raise UsageError(
            f"prepare.key cannot be read: {error}", where=name, hint="name regular files in the workspace"
        ) from None
    if len(content) > MAX_KEY_FILE:
        raise UsageError(
            "a file of prepare.key is larger than 64 MiB", where=name, hint="name a lock file instead of the packages"
        )
    return hashlib.sha256(content).hexdigest()
