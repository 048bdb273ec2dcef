"""Facts are gathered if a play uses one; a fact outside of the subset is refused before the first task."""

from __future__ import annotations

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.facts import FACTS
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.gates.templating import Templar
from ktrdr_vm.guest.protocol import GuestResult
from tests.fakes.guest import FakeGuest
from tests.unit.gates.conftest import Gate


def run(text: str, guest: FakeGuest | None = None) -> list[tuple[str, str, str]]:
    result = run_playbook(parse_playbook(text, "p.yaml"), guest or FakeGuest(), GateContext(renderer=Templar()))
    return [(task.name, task.outcome, task.message) for task in result.tasks]


def test_they_are_gathered_on_demand() -> None:
    found = run(
        "- hosts: all\n  tasks: [{name: a, debug: {msg: '{{ ansible_facts.system }} {{ ansible_user_uid is number }}'}}]\n"
    )
    assert found == [("Gathering Facts", "ok", ""), ("a", "ok", "Linux True")]
    assert run("- hosts: all\n  gather_facts: true\n  tasks: [{name: a, debug: {msg: x}}]\n") == [("a", "ok", "x")]


def test_each_documented_fact_is_there(gate: Gate) -> None:
    uses = ", ".join(f"ansible_facts.{name} is defined and ansible_{name} is defined" for name in sorted(FACTS))
    (_, _, message) = run(f'- hosts: all\n  tasks: [{{debug: {{msg: "{{{{ [{uses}] | unique }}}}"}}}}]\n')[1]
    assert message == "[true]"


def test_without_gathering_they_are_not_defined_until_setup() -> None:
    play = "- hosts: all\n  gather_facts: false\n  tasks:\n    - {name: a, debug: {msg: '{{ ansible_system is defined }}'}}\n"
    assert run(play) == [("a", "ok", "false")]
    again = run(f"{play}    - setup:\n    - {{name: b, debug: {{msg: '{{{{ ansible_system }}}}'}}}}\n")
    assert [message for _, _, message in again] == ["false", "", "Linux"]


def test_a_guest_without_python_fails_the_first_task() -> None:
    found = run(
        "- hosts: all\n  tasks: [{debug: {msg: '{{ ansible_system }}'}}]\n",
        FakeGuest(lambda ran: GuestResult(127, b"", b"no python3")),
    )
    assert found[0][:2] == ("Gathering Facts", "failed") and "requires python3" in found[0][2]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("ansible_facts.bios_date", "the fact 'ansible_facts.bios_date' is not supported"),
        ("ansible_facts['bios_date'] | default('x')", "the fact 'ansible_facts.bios_date' is not supported"),
        ("ansible_bios_date is defined", "the fact 'ansible_bios_date' is not supported"),
        ("ansible_facts | length", "with the literal name of a fact"),
        ("ansible_facts[name]", "with the literal name of a fact"),
        ("hostvars['a'].b", "the variable 'hostvars' is not supported: a gate has one host"),
        ("groups.all", "the variable 'groups' is not supported"),
        ("ansible_user", "use ansible_facts.user_id"),
    ],
)
def test_what_has_no_value_here_is_refused_with_its_place(expression: str, said: str) -> None:
    text = f'- hosts: all\n  tasks:\n    - command: touch /first\n    - debug: {{msg: "{{{{ {expression} }}}}"}}\n'
    with pytest.raises(DocumentError) as caught:
        parse_playbook(text, "p.yaml")
    assert str(caught.value).startswith("p.yaml:4:") and said in str(caught.value)


def test_a_variable_of_the_playbook_may_have_such_a_name() -> None:
    play = "- hosts: all\n  vars: {ansible_custom: bob}\n  tasks: [{name: a, debug: {msg: '{{ ansible_custom }}'}}]\n"
    assert run(play) == [("a", "ok", "bob")]
