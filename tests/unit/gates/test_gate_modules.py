"""What each module does and returns; sources and destinations stay where they belong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.gates.modules.table import RUN
from ktrdr_vm.gates.specs import MODULES
from ktrdr_vm.guest.protocol import GuestResult


def only(gate: Any, task: str, **settings: Any) -> Any:
    return gate.run(f"- {task}", **settings).tasks[0]


def test_command_words_reach_the_shell_quoted(gate: Any) -> None:
    gate.run("- command: prog 'a b' $HOME ; rm -rf / `id` \"$(id)\" ~/x '*'")
    line = gate.guest.ran[0].line
    assert line.startswith("prog 'a b' ")
    assert "';' rm -rf / '`id`' '$(id)'" in line
    assert line.endswith("\"${HOME:-~}\"/x '*'")


def test_command_argv_stdin_and_directory(gate: Any) -> None:
    gate.run('- command: {argv: [cat, "a b"], stdin: "text", chdir: /srv, expand_argument_vars: false}')
    ran = gate.guest.ran[0]
    assert (ran.line, ran.stdin, ran.chdir) == ("cat 'a b'", b"text\n", "/srv")


def test_creates_skips(gate: Any) -> None:
    task = only(gate, "command: {cmd: make, creates: '/srv/out*'}")
    assert (task.outcome, len(gate.guest.ran)) == ("ok", 1)
    assert "/srv/out*" in gate.guest.ran[0].line


def test_shell_result_has_ansibles_fields(gate: Any) -> None:
    result = gate.run("""
- {shell: "echo a", register: r}
- assert:
    that:
      - r.rc == 0 and r.stdout_lines == ['a'] and r.stderr == '' and r.cmd == 'echo a'
      - r.delta is match('0:00:0') and r.start is defined and r.end is defined and r is succeeded
""")
    assert result.outcome == "passed", result.message


def test_copy_is_idempotent_and_sets_the_mode(gate: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text {{ not_a_template }}")
    target = tmp_path / "guest" / "b.txt"
    target.parent.mkdir()
    task = f'copy: {{src: a.txt, dest: "{target}", mode: "0600"}}'
    assert [only(gate, task).outcome, only(gate, task).outcome] == ["changed", "ok"]
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("text {{ not_a_template }}", 0o600)
    assert only(gate, f'copy: {{content: {{a: 1}}, dest: "{target}"}}').outcome == "changed"
    assert target.read_text() == '{"a": 1}'


def test_copy_of_a_folder_and_of_a_large_file(gate: Any, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "big").write_bytes(b"x" * 300_000)
    (tmp_path / "guest").mkdir()
    assert only(gate, f'copy: {{src: tree, dest: "{tmp_path}/guest"}}').outcome == "changed"
    assert (tmp_path / "guest" / "tree" / "sub" / "big").stat().st_size == 300_000


@pytest.mark.parametrize("name", [".git/config", "sub/.GIT/config", "sub", ".", "PLACE/.git/config"])
def test_a_repositorys_own_folder_never_enters_a_sandbox(gate: Any, tmp_path: Path, name: str) -> None:
    """Its configuration may hold a remote with a password; a playbook can come from an untrusted branch."""
    for place in (".git", "sub/.GIT"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config").write_text("url = https://me:password@forge.test/x.git")
    source = name.replace("PLACE", str(tmp_path))
    result = only(gate, f'copy: {{src: "{{{{ \'{source}\' }}}}", dest: "{tmp_path}/guest"}}')
    assert result.outcome == "failed" and "never copied into a sandbox" in result.message
    assert not (tmp_path / "guest").exists()


@pytest.mark.parametrize(
    "module", ["copy: {src: NAME, dest: /tmp/x}", "template: {src: NAME, dest: /tmp/x}", "script: NAME"]
)
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../outside", "a/../../outside", "link", "folder_link/shadow", "fifo", "missing"]
)
def test_sources_stay_beneath_the_roots(gate: Any, tmp_path: Path, module: str, name: str) -> None:
    (tmp_path.parent / "outside").write_text("secret")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder_link").symlink_to("/etc")
    os.mkfifo(tmp_path / "fifo")
    task = only(gate, module.replace("NAME", f"\"{{{{ '{name}' }}}}\""))
    assert task.outcome == "failed"
    assert gate.guest.ran == []


def test_an_absolute_source_beneath_a_root_is_fine(gate: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert only(gate, f'copy: {{src: "{tmp_path}/a.txt", dest: "{tmp_path}/b.txt"}}').outcome == "changed"


def test_template_renders_the_plays_variables_only(gate: Any, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "t.j2").write_text("{% if shown %}\nvalue={{ value }}\n{% endif %}\n")
    result = gate.run(f"""
- template: {{src: t.j2, dest: "{tmp_path}/t"}}
  vars: {{shown: true, value: "{{{{ 6*7 }}}}"}}
""")
    assert result.outcome == "passed", result.message
    assert (tmp_path / "t").read_text() == "value=42\n"
    (tmp_path / "bad.j2").write_text("{% include '/etc/passwd' %}")
    assert "include is not supported" in only(gate, 'template: {src: bad.j2, dest: "/tmp/x"}').message


@pytest.mark.parametrize("dest", ["/etc/cron.d/x", "../x", "a/../../x", "link/x"])
def test_fetch_goes_beneath_the_artifacts_only(gate: Any, tmp_path: Path, dest: str) -> None:
    gate.guest.files["/srv/log"] = b"data"
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "link").symlink_to(tmp_path)
    assert only(gate, f"fetch: {{src: /srv/log, dest: \"{{{{ '{dest}' }}}}\", flat: true}}").outcome == "failed"
    assert not (tmp_path / "x").exists()


def test_fetch_writes_and_replaces(gate: Any, tmp_path: Path) -> None:
    gate.guest.files["/srv/log"] = b"data"
    for _ in range(2):
        assert only(gate, "fetch: {src: /srv/log, dest: logs/, flat: true}").outcome == "changed"
    assert (tmp_path / "artifacts" / "logs" / "log").read_bytes() == b"data"
    assert only(gate, "fetch: {src: /srv/log, dest: logs}").outcome == "changed"
    assert (tmp_path / "artifacts" / "logs" / "guest" / "srv" / "log").exists()
    assert only(gate, "fetch: {src: /srv/none, dest: logs}").outcome == "failed"
    assert only(gate, "fetch: {src: /srv/none, dest: logs, fail_on_missing: false}").outcome == "ok"


def test_the_number_of_fetched_files_is_bounded(gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop may be over names that the guest lists."""
    monkeypatch.setattr("ktrdr_vm.gates.modules.files.MAX_FETCHED", 3)
    gate.guest.files |= {f"/srv/{number}": b"x" for number in range(5)}
    tasks = "- fetch: {src: '/srv/{{ item }}', dest: a}\n  loop: [0, 1, 2, 0]\n- fetch: {src: /srv/3, dest: a}"
    first, second = gate.run(tasks).tasks
    assert (first.outcome, second.outcome) == ("changed", "failed")
    assert "has fetched 3 files" in second.message
    assert len([path for path in (gate.root / "artifacts").rglob("*") if path.is_file()]) == 3


def test_file_states(gate: Any, tmp_path: Path) -> None:
    place = tmp_path / "x" / "y"
    tasks = [
        (f'file: {{path: "{place}", state: directory, mode: "0750"}}', "changed"),
        (f'file: {{path: "{place}", state: directory, mode: "0750"}}', "ok"),
        (f'file: {{path: "{place}/f", state: touch, mode: "u=rw,go="}}', "changed"),
        (f'file: {{path: "{place}/f", state: file}}', "ok"),
        (f'file: {{path: "{place}/l", src: f, state: link}}', "changed"),
        (f'file: {{path: "{place}/l", src: f, state: link}}', "ok"),
        (f'file: {{path: "{place}/none", state: file}}', "failed"),
        (f'file: {{path: "{tmp_path}/x", state: absent}}', "changed"),
        (f'file: {{path: "{tmp_path}/x", state: absent}}', "ok"),
    ]
    assert [only(gate, task).outcome for task, _ in tasks] == [expected for _, expected in tasks]


def test_stat(gate: Any, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("abc")
    result = gate.run(f"""
- {{stat: {{path: "{tmp_path}/f"}}, register: there}}
- {{stat: {{path: "{tmp_path}/g"}}, register: gone}}
- assert: {{that: [there.stat.exists, there.stat.size == 3, there.stat.isreg, not gone.stat.exists, there.stat.checksum | length == 40]}}
""")
    assert result.outcome == "passed", result.message


def test_assert_names_what_is_false(gate: Any) -> None:
    task = only(gate, "assert: {that: [1 == 1, 1 == 2], fail_msg: not so}")
    assert (task.outcome, task.message) == ("failed", "not so: 1 == 2")


def test_pause_uses_the_clock_and_bounds(gate: Any) -> None:
    assert only(gate, "pause: {minutes: 1.5}").outcome == "ok"
    assert gate.clock.time == 90
    assert only(gate, "pause: {seconds: 1000000}").outcome == "failed"


def test_git_refuses_what_looks_like_an_option(gate: Any) -> None:
    for options in ({"repo": "--upload-pack=x"}, {"dest": "-a"}, {"version": "--force"}):
        given = {"repo": "x", "dest": "/a"} | {name: f"{{{{ '{value}' }}}}" for name, value in options.items()}
        assert only(gate, f"git: {json.dumps(given)}").outcome == "failed"
    assert gate.guest.ran == []


def test_git_clones_and_reports_what_changed(gate: Any) -> None:
    def answer(ran: Any) -> GuestResult:
        if ran.line.startswith("test -e"):
            return GuestResult(1, b"", b"")
        return GuestResult(0, b"f" * 40 if "rev-parse HEAD" in ran.line else b"", b"")

    gate.guest.answer = answer
    result = gate.run("""
- {git: {repo: "https://git.test/x", dest: /srv/x, version: main}, register: cloned}
- assert: {that: ["cloned.before is none", "cloned.after == 'f' * 40", cloned is changed]}
""")
    assert result.outcome == "passed", result.message
    assert any(
        ran.line.endswith("git clone --origin origin --recursive -- https://git.test/x /srv/x")
        for ran in gate.guest.ran
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "up --detach --no-color --quiet-pull --"),
        ("build: always, wait: true, wait_timeout: 9, services: [a, b]", "--build --wait --wait-timeout 9 -- a b"),
        ("build: never, recreate: always, remove_orphans: true", "--remove-orphans --no-build --force-recreate --"),
        (
            "state: absent, remove_volumes: true, remove_images: local, timeout: 3",
            "down --timeout 3 --rmi local --volumes --",
        ),
        ("state: restarted, services: [a]", "restart -- a"),
        (
            "files: [a.yml, b.yml], profiles: [p], env_files: [e], project_name: n",
            "--project-name n --file a.yml --file b.yml --profile p --env-file e",
        ),
    ],
)
def test_compose_command_lines(gate: Any, options: str, words: str) -> None:
    gate.run(f"- docker_compose_v2: {{project_src: /workspace{', ' + options if options else ''}}}")
    assert words in gate.guest.ran[0].line
    assert gate.guest.ran[0].chdir == "/workspace"


def test_compose_changed_is_what_compose_reports(gate: Any) -> None:
    said = b" Container p-db-1  Running\n"
    gate.guest.answer = lambda ran: GuestResult(0, b"", said)
    assert only(gate, "docker_compose_v2: {project_src: /w}").outcome == "ok"
    said = b" Network p_default  Creating\n Network p_default  Created\n Container p-db-1  Started\n"
    assert only(gate, "docker_compose_v2: {project_src: /w}").outcome == "changed"


@pytest.mark.parametrize(
    "said", [b"\n", b" ", b"Container ", b" Container a  Started", b"Container\t\n", b"\x1d", b'"']
)
@pytest.mark.parametrize("code", [0, 1])
def test_what_compose_reports_is_read_in_time(gate: Any, said: bytes, code: int) -> None:
    """A search over all lines took more than an hour for a megabyte of blank ones, and no limit of a task ends it."""
    gate.guest.answer = lambda ran: GuestResult(code, b"", said * (300_000 // len(said)))
    began = time.process_time()
    assert only(gate, "docker_compose_v2: {project_src: /w}").outcome == ("failed" if code else "ok")
    assert time.process_time() - began < 10


def test_compose_refuses_services_that_look_like_options(gate: Any) -> None:
    assert only(gate, "docker_compose_v2: {project_src: /w, services: [\"{{ '--privileged' }}\"]}").outcome == "failed"
    assert not any("compose" in ran.line for ran in gate.guest.ran)


def test_a_guest_that_lies_in_its_answer_is_a_failed_task(gate: Any) -> None:
    for lie in (b"", b"ktrdr-vm-result:[", b"ktrdr-vm-result:" + b"[" * 100_000, b"ktrdr-vm-result:[1]", b"\xff\xfe"):
        gate.guest.answer = lambda ran, lie=lie: GuestResult(0, lie, b"")
        assert only(gate, "stat: {path: /x}").outcome == "failed"


def test_arguments_of_guest_side_programs_stand_in_no_argv(gate: Any) -> None:
    gate.guest.answer = lambda ran: GuestResult(0, b'ktrdr-vm-result:{"status": 200}', b"")
    assert only(gate, 'uri: {url: "http://127.0.0.1/", headers: {Authorization: s3cret}}').outcome == "ok"
    assert gate.guest.ran[0].line == "python3 -I -"
    assert b"s3cret" in gate.guest.ran[0].stdin


def test_omit_leaves_an_option_out(gate: Any) -> None:
    gate.run('- command: {cmd: ls, chdir: "{{ nowhere | default(omit) }}"}')
    assert gate.guest.ran[0].chdir is None


def test_check_mode_changes_nothing(gate: Any, tmp_path: Path) -> None:
    result = gate.run(f"""
- shell: echo x
- copy: {{content: x, dest: "{tmp_path}/f"}}
- file: {{path: "{tmp_path}/d", state: directory}}
""", check=True)  # fmt: skip
    assert [task.outcome for task in result.tasks] == ["skipped", "changed", "changed"]
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "d").exists()


def test_every_module_that_a_playbook_may_use_has_a_function() -> None:
    """Without one, the task would fail with a KeyError in the middle of a gate. Five are the parser's own."""
    parsed = {"include_tasks", "import_tasks", "include_role", "import_role", "meta"}
    assert set(MODULES) ^ set(RUN) == parsed
