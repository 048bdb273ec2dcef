"""The questions of `top`: a reason for an answer, and a confirmation."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ktrdr_vm.escalation.store import Escalation
from ktrdr_vm.monitoring.asks import describe_ask

_CSS = """
{name} {{ align: center middle; }}
{name} > VerticalScroll {{
    width: 90%; height: auto; max-height: 90%; border: solid $foreground; padding: 0 1; background: $surface;
}}
"""


class AnswerDialog(ModalScreen[str]):
    """Shows an escalation whole and asks for the reason; the result is the reason, or nothing."""

    CSS = _CSS.format(name="AnswerDialog")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "give_up", "Back")]

    def __init__(self, verb: str, instance_id: str, escalation: Escalation) -> None:
        super().__init__()
        self._verb, self._instance_id, self._escalation = verb, instance_id, escalation

    def compose(self) -> ComposeResult:
        one = self._escalation
        with VerticalScroll():
            yield Static(f"{self._verb} {one.id} of {self._instance_id}", markup=False)
            yield Static(describe_ask(one), markup=False)
            yield Static("The guest can read the reason, and the report contains it. Escape goes back.", markup=False)
            yield Input(placeholder="reason", id="reason")

    def on_mount(self) -> None:
        self.query_one("#reason", Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.dismiss(event.value.strip())

    def action_give_up(self) -> None:
        self.dismiss(None)


class ConfirmDialog(ModalScreen[bool]):
    """Asks for `y` or `n`."""

    CSS = _CSS.format(name="ConfirmDialog")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss_with(True)", "Yes"),
        Binding("n,escape", "dismiss_with(False)", "No"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(f"{self._text}  y / n", markup=False)

    def action_dismiss_with(self, wanted: bool) -> None:
        self.dismiss(wanted)
