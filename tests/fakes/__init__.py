"""Stand-ins for what a test has not: a guest, and libvirt. Each implements the interface whole, held to it by types."""
