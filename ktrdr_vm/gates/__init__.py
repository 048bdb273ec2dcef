"""Gate playbooks: parsed, checked before the first task, and run over SSH, with templates rendered in a process apart.

Public: `load.load_playbook`, `runner.run_playbook`, `context.GateContext`.
"""
