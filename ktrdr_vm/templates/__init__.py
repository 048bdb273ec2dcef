"""Templates: a machine booted once and frozen, for images and for prepared projects, that instances are forked from.

Public: `base.build_template`, `project.find_best`, `project.build_best`.
"""
