"""The selection of tasks by tags, with Ansible's rules for `always`, `never`, `all`, `tagged` and `untagged`."""

from __future__ import annotations


def is_selected(tags: set[str], wanted: set[str], unwanted: set[str]) -> bool:
    """True if a task with these tags runs for `--tags` and `--skip-tags`."""
    if tags & unwanted or ("tagged" in unwanted and tags) or ("untagged" in unwanted and not tags):
        return "always" in tags and "always" not in unwanted and not tags & (unwanted - {"tagged"})
    if "never" in tags and not tags & (wanted - {"all"}):
        return False
    if not wanted or "all" in wanted or "always" in tags:
        return True
    return bool(tags & wanted) or ("tagged" in wanted and bool(tags)) or ("untagged" in wanted and not tags)
