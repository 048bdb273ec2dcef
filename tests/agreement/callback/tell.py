"""A callback plugin for ansible-core: one JSON line for each task and each item of a loop, in `$KTRDR_TOLD`."""

import json
import os

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "tell"
    CALLBACK_NEEDS_ENABLED = False

    def _tell(self, result, outcome):
        task = result._task if hasattr(result, "_task") else result.task
        values = result._result if hasattr(result, "_result") else result.result
        row = {"name": task.get_name().split(" : ")[-1], "module": task.action, "outcome": outcome, "result": values}
        with open(os.environ["KTRDR_TOLD"], "a") as told:
            told.write(json.dumps(row, default=str) + "\n")

    def v2_runner_on_ok(self, result):
        values = result._result if hasattr(result, "_result") else result.result
        self._tell(result, "changed" if values.get("changed") else "ok")

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._tell(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_skipped(self, result):
        self._tell(result, "skipped")
