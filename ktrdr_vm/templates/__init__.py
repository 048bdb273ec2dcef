"""Templates: VMs of images and of prepared projects, booted once and saved, from which instances are forked.

Public: `base.build_template`, `project.find_best`, `project.build_best`.
"""
