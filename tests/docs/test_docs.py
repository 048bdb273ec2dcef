"""The documentation says what the program does: every command, target, link, key, module and exit code in it is the
program's own."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from ktrdr_vm import errors
from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates import playbook as playbooks
from ktrdr_vm.gates.filters import FILTERS, TESTS
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.specs import MODULES
from ktrdr_vm.host.package_sources import PRESETS
from ktrdr_vm.host.paths import Home
from ktrdr_vm.images.recipe import load_recipe
from ktrdr_vm.inputs.references import find_playbook
from ktrdr_vm.inputs.resolve import read_profile
from ktrdr_vm.places.model import PLACES, parse_places
from ktrdr_vm.plan.brokers import make_routes
from ktrdr_vm.policy.owner_policy import OwnerPolicy, check_policy, parse_policy
from ktrdr_vm.policy.schema import POLICY
from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.model import Mount, Profile, Secret, Size, Workload, Workspace
from ktrdr_vm.profile.reserved import RESERVED
from ktrdr_vm.profile.schema import PROFILE
from ktrdr_vm.report import model as report

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def find_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def find_inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def find_shown_lines(text: str) -> Iterator[str]:
    """What a reader would type: lines of console blocks after a prompt, without the remark at their end."""
    for block in find_blocks(text, "console"):
        for line in block.splitlines():
            if line.startswith(("$ ", "# ")):
                yield re.sub(r"\s{2,}#\s.*", "", line[2:]).strip()


def find_table(text: str, first: str) -> dict[str, list[str]]:
    """Rows of every table whose head begins with `first`: the code in the first cell to the other cells."""
    rows: dict[str, list[str]] = {}
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        inside = bool(cells) and (inside or cells[0] == first)
        if inside:
            rows |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1:])
    return rows


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `ktrdr-vm` name, and what is left for it."""
    command: click.Command = cli
    context = click.Context(cli)
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        inner = command.get_command(context, rest[0])
        assert inner is not None, f"there is no command {rest[0]}"
        command, rest = inner, rest[1:]
    return command, rest


def walk(schema: dict, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """Every key of a cerberus schema as `a.b[].c`, with its rule."""
    for key, rule in schema.items():
        yield prefix + key, rule
        inner = rule.get("schema", {})
        if rule["type"] == "list" and inner.get("type") == "dict":
            yield from walk(inner["schema"], f"{prefix}{key}[].")
        elif "dict" in rule["type"] and inner:
            yield from walk(inner, f"{prefix}{key}.")


# -- commands, targets, links ---------------------------------------------------------------------------------------


def find_commands() -> list[tuple[str, str]]:
    shown = [(name_of(page), line) for page in PAGES for line in find_shown_lines(page.read_text(encoding="utf-8"))]
    comments = [
        (name_of(path), line)
        for path in PROFILES
        for line in re.findall(r"^#\s+(ktrdr-vm .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return [(where, line) for where, line in (*shown, *comments) if line.startswith("ktrdr-vm ")]


@pytest.mark.parametrize(("where", "line"), find_commands())
def test_shown_commands_parse(where, line):
    command, rest = resolve(shlex.split(line)[1:])
    try:
        command.make_context(command.name, rest)  # parses, and calls nothing
    except click.exceptions.Exit:
        pass  # --help
    except click.ClickException as error:
        pytest.fail(f"{where}: {line}: {error.format_message()}")


def test_there_are_commands_to_check():
    assert len(find_commands()) > 20


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_exist(page):
    for code in find_inline_code(page.read_text(encoding="utf-8")):
        if not code.startswith("ktrdr-vm ") or code.startswith("ktrdr-vm: "):
            continue
        words = code.split()[1:]
        command, rest = resolve(words)
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        unknown = [word for word in rest if word.startswith("--") and word != "--" and word not in known]
        assert not unknown, f"{code}: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    for line in (*find_shown_lines(text), *find_inline_code(text)):
        if found := re.fullmatch(r"make ([a-z-]+)", line):
            assert found[1] in targets, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}, target


def test_every_page_is_in_the_index():
    text = read("docs/index.md")
    for page in DOCS.rglob("*.md"):
        assert page.name == "index.md" or f"({page.relative_to(DOCS)})" in text, page


@pytest.mark.parametrize("picture", sorted(DOCS.rglob("*.svg")), ids=name_of)
def test_pictures_say_what_they_show(picture):
    root = ElementTree.parse(picture).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title") and root.findtext(f"{space}desc")


# -- profiles -------------------------------------------------------------------------------------------------------


def test_every_profile_key_is_documented_and_no_other():
    assert set(find_table(read("docs/profile.md"), "key")) == {key for key, _ in walk(PROFILE)}


def test_choices_and_required_keys_are_documented():
    rows = find_table(read("docs/profile.md"), "key")
    for key, rule in walk(PROFILE):
        kind, default = rows[key][:2]
        assert all(str(choice) in kind for choice in rule.get("allowed", ())), key
        assert default == "required" or not rule.get("required"), key
    assert all(f"`{preset}`" in rows["egress.allow[].preset"][0] for preset in PRESETS)


def test_defaults_are_documented():
    rows = find_table(read("docs/profile.md"), "key")
    expected = {
        "mode": Profile.mode,
        "resources.vcpus": Size.vcpus,
        "resources.memory": Size.memory,
        "resources.disk": Size.disk,
        "workspace.source": Workspace.source,
        "workspace.target": Workspace.target,
        "workspace.transfer": Workspace.transfer,
        "workspace.uncommitted": Workspace.uncommitted,
        "mounts[].readonly": str(Mount.readonly).lower(),
        "secrets[].mode": f'"{Secret.mode:04o}"',
        "secrets[].ttl": Secret.ttl,
        "workload.timeout": Workload.timeout,
        "gate_timeout": Profile.gate_timeout,
    }
    for key, value in expected.items():
        shown = rows[key][1].strip("`")
        for parse in (scalars.parse_size, scalars.parse_duration):
            if re.fullmatch(r"\d+[A-Za-z]+", shown) and isinstance(value, int):
                try:
                    shown = str(parse(shown))
                except ValueError:
                    continue
        assert shown == str(value), key


@pytest.mark.parametrize("path", PROFILES, ids=name_of)
def test_shipped_profiles_are_valid(path):
    loaded = read_profile(path)
    assert check_policy(loaded, OwnerPolicy(), str(ROOT)) == []
    for gate in loaded.profile.gates:
        load_playbook(find_playbook(gate, ROOT))


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=name_of)
def test_examples_in_yaml_are_valid(page):
    for block in find_blocks(page.read_text(encoding="utf-8"), "yaml"):
        if block.startswith("version:"):
            load_profile(block, name_of(page), lambda *_: pytest.fail("an example extends nothing"))
        elif block.startswith("- name:"):
            parse_playbook(block, name_of(page))
        elif block.startswith("places:"):
            parse_places(block, name_of(page))
        else:
            parse_policy(block, name_of(page))


def test_the_owners_policy_is_documented():
    rows = find_table(read("docs/owner-policy.md"), "key")
    leaves = {key for key, rule in walk(POLICY) if "schema" not in rule or rule["type"] == "list"} - {
        "resources.max.vcpus",
        "resources.max.memory",
        "resources.max.disk",
    }
    assert set(rows) == leaves | {"resources.max"}
    text, largest = read("docs/owner-policy.md"), OwnerPolicy().largest
    assert f"{largest.vcpus}, {largest.memory // 1024} GiB, {largest.disk // 1024} GiB" in text


def test_the_message_in_the_owners_policy_is_the_programs():
    text = "version: 1\nname: p\nimage: x\negress:\n  allow: [{cidr: 192.168.1.5/32, ports: [5432]}]\n"
    loaded = load_profile(text, "profile.yaml", lambda *_: pytest.fail("extends nothing"))
    [problem] = check_policy(loaded, OwnerPolicy(), "/")
    assert problem.message in read("docs/owner-policy.md")


def test_every_key_of_a_recipe_is_documented_and_no_other(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("x: 1\nboot: {x: 1}\nunits: {x: 1}\ncontainers: [{x: 1}]\n")
    with pytest.raises(DocumentError) as caught:
        load_recipe(recipe)
    known = set()
    for problem in caught.value.problems:
        if "is unknown; known: " in problem.message:
            prefix = problem.path.removesuffix("x").replace("[0]", "[]")
            known |= {prefix + key for key in problem.message.split("known: ")[1].split(", ")}
    assert set(find_table(read("docs/images.md"), "key")) == known


# -- playbooks ------------------------------------------------------------------------------------------------------


def test_every_module_and_option_is_documented_and_no_other():
    rows = find_table(read("docs/playbooks.md"), "module")
    assert set(rows) == set(MODULES)
    for module, spec in MODULES.items():
        shown = set(re.findall(r"`([^`]+)`", rows[module][-1]))
        assert spec.any_option or shown == set(spec.options), module


def test_every_keyword_is_documented_and_no_other():
    known = playbooks._TASK_KEYS | playbooks._BLOCK_KEYS | playbooks._PLAY_KEYS
    assert set(find_table(read("docs/playbooks.md"), "keyword")) == known


def test_filters_and_tests_are_documented():
    text = read("docs/playbooks.md")
    assert [name for name in (*FILTERS, *TESTS) if f"`{name}`" not in text] == []


def test_what_is_said_to_be_refused_is_refused():
    section = read("docs/playbooks.md").split("## What is refused")[1].split("\n\n")[1]
    words = set(re.findall(r"`([a-z_]+)`", section))
    assert "delegate_to" in words
    for word in words:
        with pytest.raises(DocumentError) as caught:
            parse_playbook(f"- hosts: all\n  tasks: [{{command: x, {word}: y}}]\n", "p.yaml")
        assert word in str(caught.value)


@pytest.mark.parametrize("path", PLAYBOOKS, ids=name_of)
def test_shipped_playbooks_parse_and_are_documented(path):
    load_playbook(path)
    assert f"(../playbooks/{path.name})" in read("docs/playbooks.md")


def test_documented_variables_of_gates_exist():
    for gate, cells in find_gates().items():
        text = read(f"playbooks/{gate}.yaml")
        for variable in re.findall(r"`([a-z_0-9]+)`", cells[-1]):
            assert re.search(rf"^    {variable}:", text, re.MULTILINE), f"{gate}: {variable}"


def find_gates() -> dict[str, list[str]]:
    rows = {}
    for line in read("docs/playbooks.md").splitlines():
        if found := re.match(r"\| \[(\w+)\]\(\.\./playbooks/", line):
            rows[found[1]] = [cell.strip() for cell in line.strip("|").split("|")[1:]]
    assert set(rows) == {path.stem for path in PLAYBOOKS}
    return rows


# -- what a run leaves ----------------------------------------------------------------------------------------------


def find_exit_codes() -> set[str]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.KtrdrError)]
    return {str(kind.exit_code) for kind in kinds} | {"0", "1", "130"}


def test_every_exit_code_is_documented_and_no_other():
    assert set(re.findall(r"^\| (\d+) \|", read("docs/report.md"), re.MULTILINE)) == find_exit_codes()


def test_every_field_of_a_report_is_documented():
    text = read("docs/report.md")
    words = set(re.findall(r"[a-z_0-9]+", " ".join(find_inline_code(text))))
    for kind in (
        report.RunReport,
        report.GateResult,
        report.TaskResult,
        report.WorkloadResult,
        report.Phase,
        report.Artifact,
    ):
        assert {field.name for field in dataclasses.fields(kind)} <= words, kind
    for row in (report.Denial, report.Allowance):
        assert {field.name for field in dataclasses.fields(row)} <= words, row


def test_every_name_on_the_disk_is_documented():
    text, home = read("docs/files.md"), Home(Path("/h"))
    instance = home.instance("an-id")
    for kind in (Home, type(instance)):
        owner = home if kind is Home else instance
        for name, member in vars(kind).items():
            if isinstance(member, property):
                assert getattr(owner, name).name.replace("an-id", "<instance_id>") in text, name


def test_reserved_ranges_are_documented():
    text = read("docs/egress.md")
    assert [str(network) for network in RESERVED if str(network) not in text] == []


def test_the_brokers_shown_are_profiles():
    """Each block of the page on brokers, in a profile, loads and gives a URL for each secret."""
    blocks = find_blocks(read("docs/broker.md"), "yaml")
    assert len(blocks) >= 4
    for block in blocks:
        profile = load_profile(block, "docs/broker.md", lambda *_: ("", b"")).profile
        routes = make_routes(profile)
        assert len(routes) == len(profile.secrets) == block.count("broker:")
        assert all(broker.header.render(b"value\n") for _, broker in profile.brokered)


def test_the_requests_shown_are_a_profile():
    """The block on rules by method and path gives the URL that the command after it uses, and the proxy's rules for
    it."""
    part = read("docs/egress.md").partition("## Requests by method and path")[2]
    [route] = make_routes(load_profile(find_blocks(part, "yaml")[0], "docs/egress.md", lambda *_: ("", b"")).profile)
    assert (route.requests.host, route.requests.methods, route.name) == (
        "api.github.com",
        ("GET",),
        "url:GITHUB_API_URL",
    )
    path = re.search(r"\$GITHUB_API_URL(/\S+)\"", find_blocks(part, "sh")[0])
    assert path is not None and path[1].startswith(route.requests.paths)


def test_every_key_of_a_place_is_documented_and_no_other():
    keys = PLACES["places"]["valuesrules"]["schema"]
    assert set(find_table(read("docs/places.md"), "key of a place")) - {"local", "ssh", "slurm"} == set(keys)


def test_every_environment_variable_that_is_read_is_described() -> None:
    reads = re.compile(r"environ(?:\.get\(|\.pop\(|\[)\s*\"([A-Z_]+)\"|\bgetenv\(\"([A-Z_]+)\"")
    found = {
        first or second
        for path in (ROOT / "ktrdr_vm").rglob("*.py")
        if "guest_side" not in path.parts
        for first, second in reads.findall(path.read_text(encoding="utf-8"))
    }
    section = read("docs/files.md").partition("## Environment variables")[2]
    assert "KTRDR_VM_HOME" in found and found - set(find_inline_code(section)) == set()
