"""A Debian host in a box: a machine of QEMU's own emulation with its own kernel, systemd, AppArmor and a KVM that
works."""
