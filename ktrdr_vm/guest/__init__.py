"""The guest over SSH and over its agent: commands, workspace, commits, artifacts, identity. All that it sends is
bounded.

Public: `protocol.Guest`, `ssh.connect`, `workspace.copy_in`, `commits.pull_commits`, `artifacts.fetch_artifacts`.
"""
