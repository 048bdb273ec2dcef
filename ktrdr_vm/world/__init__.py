"""The world: namespaces of one user without root, in which libvirt, the guards and the instances run."""
