"""Everything wrong with a playbook is said at once, with its place, before the first task."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ktrdr_vm.errors import DocumentError, UsageError
from ktrdr_vm.gates.arguments import split_words
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.gates.playbook import parse_playbook

SHIPPED = Path(__file__).parents[3] / "playbooks"


def problems(text: str, **settings: object) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        parse_playbook(text, "p.yaml", **settings)  # type: ignore[arg-type]
    return [str(problem) for problem in caught.value.problems]


def task(text: str) -> str:
    return f"- hosts: all\n  tasks:\n    - {text}\n"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_playbooks_parse(path: Path) -> None:
    assert parse_playbook(path.read_text(), str(path)).name == path.stem


def test_startability_has_its_seven_tasks() -> None:
    (play,) = parse_playbook((SHIPPED / "startability.yaml").read_text(), "startability.yaml").plays
    (block,) = play.tasks
    names = [node.name for node in (*block.block, *block.always)]  # type: ignore[union-attr]
    assert names == [
        "configuration valid",
        "containers build",
        "services start",
        "health checks pass",
        "API answers",
        "database reachable",
        "clean teardown",
    ]


def test_all_problems_at_once_with_their_places() -> None:
    found = problems("""
- hosts: web
  strategy: free
  tasks:
    - with_nested: [1]
      command: {cmd: a, foo: 1}
    - ping:
    - shell: x
      when: a ==
      retries: many
""")
    assert [line.split(": ")[0] for line in found] == [
        "p.yaml:2:10", "p.yaml:3:3", "p.yaml:5:7", "p.yaml:6:7", "p.yaml:7:7", "p.yaml:9:13", "p.yaml:10:16",
    ]  # fmt: skip
    assert "with_nested" in found[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raw: ls", "'raw'"),
        ("{shell: a, command: b}", "exactly one module"),
        ("{name: nothing}", "exactly one module"),
        ("community.general.docker_compose_v2: {project_src: /x}", "not supported"),
        ("ansible.builtin.docker_compose_v2: {project_src: /x}", "not supported"),
        ("{shell: a, delegate_to: localhost}", "keyword 'delegate_to'"),
        ("{shell: a, connection: local}", "keyword 'connection'"),
        ("{shell: a, async: 5}", "keyword 'async'"),
        ("local_action: shell x", "keyword 'local_action'"),
        ("copy: {dest: /x}", "requires src or content"),
        ("copy: {dest: /x, src: a, content: b}", "only one of"),
        ("uri: {url: x, status_code: 200, follow: 1}", "no option 'follow'"),
        ("docker_compose_v2: {project_src: /x, state: gone}", "must be one of"),
        ("docker_compose_v2: {project_src: /x, definition: {}}", "no option 'definition'"),
        ("{shell: a, register: 'a b'}", "not the name of a variable"),
        ("{shell: a, become: maybe}", "true or false"),
        ("{shell: a, loop: 3}", "must be a list"),
        ("{shell: a, when: \"x == '{{ y }}'\"}", "without braces"),
        ("{shell: a, when: {a: 1}}", "must be an expression"),
        ("{shell: a, until: \"lookup('file', '/etc/passwd')\"}", "lookup() "),
        ("debug: {msg: \"{{ lookup('pipe', 'id') }}\"}", "lookup() "),
        ('debug: {msg: "{{ x | nofilter }}"}', "nofilter"),
        ("debug: {msg: \"{% include '/etc/passwd' %}\"}", "include is not supported"),
        ('debug: {msg: "{% macro a() %}{% endmacro %}"}', "macro is not supported"),
        ("{shell: a, timeout: -1}", "must be a number"),
        ("{shell: a, vars: [1]}", "must be a mapping"),
        ("{shell: a, vars: {'a b': 1}}", "not the name of a variable"),
        ("{rescue: []}", "require a `block`"),
        ("pause:", "requires seconds or minutes"),
        ("include_tasks: ../x.yaml", "not beneath"),
        ("include_tasks: /etc/passwd", "not beneath"),
        ("include_tasks: '{{ x }}'", "a literal name"),
        ("just text", "a mapping"),
    ],
)
def test_what_is_not_supported_is_refused_and_named(text: str, said: str) -> None:
    assert any(said in line for line in problems(task(text), read=lambda name: "")), said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "[]",
        "- just text",
        "- hosts: all\n  tasks: {}\n",
        "- hosts: all\n  vars: []\n  tasks: []\n",
        "\x00",
        "\t- a",
    ],
)
def test_what_is_no_playbook(text: str) -> None:
    assert problems(text)


@pytest.mark.parametrize(
    "text",
    [
        "- hosts: all\n  hosts: all\n",
        "- hosts: !!python/object/apply:os.system [id]\n",
        "- &a [1]\n- *a\n",
        "- hosts: all\n  tasks: " + "[" * 10_000,
        "- hosts: all\n  tasks:\n" + "    - shell: x\n" * 100_000,
        "x" * 50_000_000,
    ],
    ids=["duplicate", "tag", "alias", "deep", "many", "huge"],
)
def test_hostile_documents_end_soon(text: str) -> None:
    started = time.monotonic()
    assert problems(text)
    assert time.monotonic() - started < 5


def test_includes_are_relative_and_bounded() -> None:
    files = {
        "a.yaml": "- include_tasks: sub/b.yaml\n",
        "sub/b.yaml": "- include_tasks: c.yaml\n",
        "sub/c.yaml": "- shell: x\n",
    }

    def read(name: str) -> str:
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    (play,) = parse_playbook(task("include_tasks: a.yaml"), "p.yaml", read=read).plays
    inner = play.tasks[0].included[0].included[0].included[0]  # type: ignore[union-attr]
    assert inner.where == "sub/c.yaml:1:3"
    files["sub/c.yaml"] = "- include_tasks: a.yaml\n"
    assert any("includes itself" in line for line in problems(task("include_tasks: a.yaml"), read=read))
    files["a.yaml"] = "- raw: x\n- copy: {}\n"
    assert problems(task("include_tasks: a.yaml"), read=read)[0].startswith("a.yaml:1:3: ")
    assert problems(task("include_tasks: none.yaml"), read=read)


def test_include_that_doubles_is_bounded() -> None:
    started = time.monotonic()
    files = {f"{n}.yaml": f"- include_tasks: {n + 1}.yaml\n" * 10 for n in range(12)}
    assert problems(task("include_tasks: 0.yaml"), read=lambda name: files[name])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("command: make a=b chdir=/srv", {"cmd": "make a=b", "chdir": "/srv"}),
        ("command: echo 'chdir=/srv'  two", {"cmd": "echo 'chdir=/srv'  two"}),
        ("shell: |\n        a=1\n        echo $a", {"cmd": "a=1\necho $a"}),
        ('copy: src=a dest="b c" mode=0644', {"src": "a", "dest": "b c", "mode": "0644"}),
        ("debug: msg={{ a + 'b c' }}", {"msg": "{{ a + 'b c' }}"}),
        ("{command: ls, args: {chdir: /x}}", {"cmd": "ls", "chdir": "/x"}),
        ("ansible.builtin.shell: {cmd: ls}", {"cmd": "ls"}),
        ("file: {dest: /x, state: absent}", {"path": "/x", "state": "absent"}),
        ("include_tasks: x.yaml", {"file": "x.yaml"}),
    ],
)
def test_ways_of_writing_options(text: str, arguments: dict[str, str]) -> None:
    (play,) = parse_playbook(task(text), "p.yaml", read=lambda name: "").plays
    assert play.tasks[0].arguments == arguments  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["a b", "a  'b c'\n d", "x={{ 'a b' }} y", "open 'quote", "back\\ slash end\\"])
def test_splitting_loses_nothing(text: str) -> None:
    assert "".join(split_words(text)) == text


def test_loading_follows_no_link_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("- shell: secret\n")
    folder = tmp_path / "playbooks"
    folder.mkdir()
    (folder / "link.yaml").symlink_to(tmp_path / "secret")
    (folder / "p.yaml").write_text(task("include_tasks: link.yaml"))
    with pytest.raises(DocumentError, match="links are not followed"):
        load_playbook(folder / "p.yaml")
    (folder / "link.yaml").unlink()
    (folder / "link.yaml").write_text("- shell: x\n")
    assert load_playbook(folder / "p.yaml").name == "p"
    with pytest.raises(UsageError):
        load_playbook(folder / "none.yaml")
