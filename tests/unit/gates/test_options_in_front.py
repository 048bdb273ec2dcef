"""Options that a module cannot honour are refused when the playbook is read, at their task, and not when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.guest.protocol import GuestResult
from tests.fakes.guest import Ran
from tests.unit.gates.conftest import Gate

REFUSED = """
copy: {content: x, dest: /b/}
copy: {src: ../x, dest: /b}
copy: {src: .git/config, dest: /b}
copy: {src: .ssh/id, dest: /b}
copy: {src: x, dest: /b, mode: '9'}
copy: {src: x, dest: /b, mode: rwx}
copy: {src: x, dest: /b, directory_mode: u+y}
copy: {src: x, dest: /b, mode: preserve}
template: {src: a/../../x, dest: /b}
script: ../x.sh
script: {cmd: "x 'a"}
command: {cmd: "x 'a"}
command: {argv: []}
file: {path: /x, src: /y, state: directory}
file: {path: /x, src: /y, state: touch}
file: {path: /x, recurse: true, state: file}
file: {path: /x, mode: u=rwz}
fetch: {src: /x, dest: ../y}
fetch: {src: /x, dest: /y}
wait_for: {port: 80, path: /x}
wait_for: {port: 99999}
wait_for: {path: /x, state: stopped}
wait_for: {path: /x, search_regex: '('}
wait_for: {port: 80, state: absent, search_regex: x}
uri: {url: 'ftp://x'}
uri: {url: 'http://x', method: GET POST}
uri: {url: 'http://x', status_code: ok}
uri: {url: 'http://x', status_code: [200, 2xx]}
uri: {url: 'http://x', follow_redirects: maybe}
git: {repo: x}
git: {repo: '-x', dest: /y}
git: {repo: x, dest: /y, version: '--force'}
git: {repo: x, dest: /y, depth: -1}
lineinfile: {path: /x}
lineinfile: {path: /x, state: absent}
lineinfile: {path: /x, line: a, insertafter: b, insertbefore: c}
lineinfile: {path: /x, line: a, regexp: b, search_string: c}
lineinfile: {path: /x, line: a, backrefs: true}
lineinfile: {path: /x, line: a, regexp: '('}
lineinfile: {path: /x, line: a, insertafter: '[a'}
replace: {path: /x, regexp: '*'}
replace: {path: /x, regexp: a, after: '('}
find: {paths: /x, age: soon}
find: {paths: /x, size: 1x}
find: {paths: /x, limit: 0}
find: {paths: /x, patterns: ['a', '('], use_regex: true}
find: {paths: /x, contains: '('}
get_url: {url: 'file:///x', dest: /x}
get_url: {url: 'http://x', dest: /x, checksum: abc}
get_url: {url: 'http://x', dest: /x, checksum: 'foo:abc'}
get_url: {url: 'http://x', dest: /x, checksum: 'sha256:xyz'}
apt: {deb: x.deb}
apt: {deb: 'http://x/y.deb'}
apt: {deb: /x.deb, name: y}
apt: {deb: /x.deb, state: absent}
apt: {name: x, upgrade: full}
apt: {name: '--x'}
apt: {name: x/bookworm}
apt: {name: x*}
apt: {name: x-}
apt: {name: [git, {a: 1}]}
package: {name: x*, state: present}
pip: {}
pip: {name: x, requirements: y}
pip: {name: x, executable: pip3, virtualenv: /v}
pip: {name: x, version: '1', state: latest}
pip: {name: [x, y], version: '1'}
pip: {name: 'x>1', version: '1'}
pip: {name: '-e .'}
pip: {name: x, virtualenv: v}
pip: {name: x, extra_args: "'"}
service: {name: x}
service: {name: x*, state: started}
systemd: {}
systemd: {state: started}
systemd: {name: '', state: started}
set_fact: {}
assert: {that: {a: 1}}
docker_compose_v2: {project_src: /x, services: [--privileged]}
""".strip().splitlines()

ACCEPTED = """
copy: {content: x, dest: "{{ there }}"}
copy: {src: /a/, dest: /b, remote_src: true}
copy: {src: ../a, dest: b, remote_src: true}
copy: {src: ../a, dest: b, remote_src: "{{ remote }}"}
copy: {src: x, dest: /b, mode: 'u=rwX,go=rX'}
copy: {src: x, dest: /b, mode: '01777'}
copy: {src: x, dest: /b, mode: 420}
copy: {src: x, dest: /b, mode: 0o644}
file: {path: /x, state: link}
file: {path: /x, recurse: true}
file: {path: /x, src: /y, state: "{{ state }}"}
wait_for: {port: "{{ port }}"}
uri: {url: 'HTTPS://x', method: patch, status_code: '200, 204', follow_redirects: yes}
uri: {url: '{{ api }}/x', status_code: ['{{ code }}']}
git: {repo: x, clone: false}
git: {repo: x, dest: /y, clone: false}
lineinfile: {path: /x, regexp: a, state: absent}
lineinfile: {path: /x, line: "{{ line }}", insertafter: EOF}
lineinfile: {path: /x, state: "{{ state }}"}
find: {paths: /x, age: -1w, size: 10k}
find: {paths: /x, patterns: '*.(txt'}
get_url: {url: 'http://x', dest: /x, checksum: 'sha256:http://x/sums'}
apt: {update_cache: yes, upgrade: yes}
apt: {upgrade: no, update_cache: true}
apt: {name: [g++, 'git=1:2.*', 'python3.11>=3', 'libc6:amd64', x]}
apt: {deb: /tmp/x.deb}
pip: {name: x, version: '1.10', virtualenv: v, chdir: /srv}
pip: {name: "{{ names }}", version: '1'}
pip: {requirements: /r.txt, virtualenv: ~/v}
systemd: {daemon_reload: true}
service: {name: "{{ unit }}", enabled: "{{ wanted }}"}
docker_compose_v2: {project_src: /x, services: [api, "{{ more }}"]}
""".strip().splitlines()


def playbook(task: str) -> str:
    return f"- hosts: all\n  tasks:\n    - command: touch /changed\n    - {task}\n"


@pytest.mark.parametrize("task", REFUSED)
def test_options_that_cannot_be_honoured_are_refused_at_their_task(task: str) -> None:
    with pytest.raises(DocumentError) as refused:
        parse_playbook(playbook(task), "g.yaml")
    assert [(problem.line, problem.column) for problem in refused.value.problems] == [(4, 7)]
    module = task.split(":")[0]
    assert refused.value.problems[0].message.count(f"{module}: {module}") == 0


@pytest.mark.parametrize("task", ACCEPTED)
def test_options_that_can_be_honoured_or_are_known_later_are_not_refused(task: str) -> None:
    parse_playbook(playbook(task), "g.yaml")


def test_options_that_are_known_later_are_refused_before_their_task_runs(gate: Gate) -> None:
    for task in (
        "apt: {name: \"{{ 'x*' }}\"}",
        "pip: {name: x, requirements: \"{{ 'r' }}\", state: absent}",
        "service: {name: x, state: '{{ omit }}'}",
        "file: {path: '{{ omit }}', state: touch}",
        "copy: {dest: /x, src: '{{ omit }}'}",
        "copy: {dest: /x, src: \"{{ 'a' }}\", content: \"{{ 'b' }}\"}",
        "uri: {url: \"{{ 'ftp://x' }}\"}",
    ):
        assert gate.run(f"- {task}").tasks[0].outcome == "failed" and gate.guest.ran == []


def test_an_option_that_is_omitted_conflicts_with_none(gate: Gate, tmp_path: Path) -> None:
    task = gate.run(f'- copy: {{dest: "{tmp_path}/f", src: "{{{{ omit }}}}", content: "{{{{ \'x\' }}}}"}}').tasks[0]
    assert (task.outcome, (tmp_path / "f").read_text()) == ("changed", "x")


def tree(tmp_path: Path) -> Path:
    source = tmp_path / "from"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "a").write_text("a")
    (source / "sub" / "run").write_text("#!/bin/sh")
    (source / "sub" / "run").chmod(0o750)
    (source / "link").symlink_to("a")
    (source / "dead").symlink_to("nowhere")
    return source


def names(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*"))


def copy(gate: Any, source: str, dest: Path | str, more: str = "") -> Any:
    return gate.run(f'- copy: {{src: "{source}", dest: "{dest}", remote_src: true{more}}}').tasks[0]


@pytest.mark.parametrize(("ending", "inside"), [("", "from"), ("/", "")])
def test_a_folder_of_the_guest_is_copied_whole(gate: Gate, tmp_path: Path, ending: str, inside: str) -> None:
    source, dest = tree(tmp_path), tmp_path / "to"
    assert copy(gate, f"{source}{ending}", dest).outcome == "changed"
    made = dest / inside
    assert names(made) == names(source)
    assert (made / "sub" / "run").stat().st_mode & 0o777 == 0o750
    assert os.readlink(made / "link") == "a" and os.readlink(made / "dead") == "nowhere"
    assert copy(gate, f"{source}{ending}", dest).outcome == "ok"
    (source / "sub" / "run").write_text("other")
    (source / "sub" / "new").symlink_to("run")
    (made / "kept").write_text("kept")
    assert copy(gate, f"{source}{ending}", dest).outcome == "changed"
    assert (made / "sub" / "new").read_text() == "other" and (made / "kept").exists()


def test_a_folder_that_cannot_be_copied_whole_is_an_error(gate: Gate, tmp_path: Path) -> None:
    source = tree(tmp_path)
    (tmp_path / "to" / "from" / "a").mkdir(parents=True)
    task = copy(gate, str(source), tmp_path / "to")
    assert task.outcome == "failed" and "is a folder" in task.message
    assert "into itself" in copy(gate, f"{source}/", source / "sub" / "low").message
    assert "does not exist" in copy(gate, str(source), tmp_path / "no" / "such").message
    assert copy(gate, str(source), tmp_path / "new" / "place" / "", ", mode: '0700'").outcome == "failed"
    assert copy(gate, str(source), f"{tmp_path}/new/place/").outcome == "changed"
    assert names(tmp_path / "new" / "place" / "from") == names(source)
    os.mkfifo(source / "pipe")
    assert "cannot be copied" in copy(gate, f"{source}/", tmp_path / "third").message


def test_git_without_a_clone_says_what_the_remote_has(gate: Gate) -> None:
    def answer(ran: Ran) -> GuestResult | None:
        if ran.line.startswith("test -e"):
            return GuestResult(1, b"", b"")
        known = {"HEAD": b"a" * 40 + b"\tHEAD\n", "refs/heads/main": b"b" * 40 + b"\trefs/heads/main\n"}
        known["refs/tags/v1^{}"] = b"c" * 40 + b"\trefs/tags/v1\n" + b"d" * 40 + b"\trefs/tags/v1^{}\n"
        found = next((line for name, line in known.items() if "ls-remote" in ran.line and name in ran.line), b"")
        return GuestResult(0, found, b"")

    gate.guest.answer = answer
    for version, commit in (("HEAD", "a"), ("main", "b"), ("v1", "d")):
        for dest in ("", ", dest: /srv/x"):
            result = gate.run(f"""
- {{git: {{repo: "https://git.test/x", clone: false, version: {version}{dest}}}, register: seen}}
- assert: {{that: ["seen.before is none", "seen.after == '{commit}' * 40", seen is changed]}}
""")
            assert result.outcome == "passed", result.message
    result = gate.run(
        f"- {{git: {{repo: x, clone: false, version: {'e' * 40}}}, register: s}}\n- debug: {{var: s.after}}"
    )
    assert "e" * 40 in result.tasks[1].message
    assert not any("clone" in ran.line for ran in gate.guest.ran)


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ("  vars: {ansible_become: true}", (2, 10)),
        ("  vars: {a: 1, ansible_become_user: postgres}", (2, 16)),
        ("  vars: {ansible_ssh_common_args: -v}", (2, 10)),
        ("  environment: [A]", (2, 17)),
        ("  environment: [{A: 1}, {A B: 1}]", (2, 26)),
        ("  environment: {1A: x}", (2, 17)),
    ],
)
def test_a_variable_that_would_have_no_effect_or_is_none_is_refused(keys: str, place: tuple[int, int]) -> None:
    with pytest.raises(DocumentError) as refused:
        parse_playbook(f"- hosts: all\n{keys}\n  tasks:\n    - command: ls\n", "g.yaml")
    assert [(problem.line, problem.column) for problem in refused.value.problems] == [place]


def test_a_fact_that_would_change_how_ansible_runs_is_refused() -> None:
    with pytest.raises(DocumentError, match="ansible_become_user"):
        parse_playbook(playbook("set_fact: {ansible_become_user: postgres}"), "g.yaml")
    parse_playbook(
        "- hosts: all\n  vars: {ansible_managed: x, my_become: 1}\n  environment: ['{{ a }}', {'{{ b }}': 1, C: 2}]\n"
        "  tasks: []\n",
        "g.yaml",
    )
