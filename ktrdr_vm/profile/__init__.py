"""The YAML profile: strict parsing, schema, loading, presets.

Public: `load.load_profile`, `load.build_profile`, `model.Profile`. Uses no disk, clock, network or randomness.
"""
