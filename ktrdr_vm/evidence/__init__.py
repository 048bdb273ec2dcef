"""The run directory: written during a run, read afterwards, bundled for a pull request, exported as telemetry.

Public: `run_directory.RunDirectory`, `reader.read_report`, `bundle.make_bundle`, `junit_files.read_test_files`,
`attestation.check_attestation`.
"""
