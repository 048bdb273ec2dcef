"""One gateway for each external interface of the host: processes, libvirt, nft, Git, the journal, locks, paths. No
policy.

Public: `process.run`, `libvirt.Libvirt`, `paths.Home`, `journal.Journal`, `beneath.open_file`, `runs.create_run`.
"""
