"""Where the guard's parts meet the rendered documents: ports, sizes, names. With nothing to import, so that the guard starts quickly."""

from __future__ import annotations

# The guard's listeners on the gateway address. They are the instance's own, so every instance uses the same numbers.
DNS_PORT = 53
HTTP_PORT = 3128
TLS_PORT = 3129
OTHER_PORT = 3130
INBOX_PORT = 8480
# Not OTLP's usual 4318: a collector that listens on every address of the host would be in the way.
OTLP_PORT = 8481
# One for each credential that the guard uses for the guest; a profile has 50 secrets at most.
BROKER_PORTS = range(8500, 8550)

# A guest that scans fills these sets; what no longer fits is counted as one.
DENIED_SIZE = 4096
ALLOWED_SIZE = 4096
# TCP connections of one guest that the kernel keeps account of at one time, half-open ones too: four times what its proxy takes. The
# kernel's table is the whole host's.
MAX_FLOWS = 4096

# Granted names to the rooms of their grants; the guard writes these files beside the name lists.
GRANT_MAPS = ("http.granted", "http.granted_suffixes", "tls.granted", "tls.granted_suffixes")
# Names with the addresses that the guest was given for them, as `name@address`: the proxy need not ask for those again.
GIVEN = "given.addresses"
# More than there are grants at one time, so that a room is not used again at once.
GRANT_ROOMS = 64

VALUES, OPEN = "broker.values", "broker.open"
"""Maps of the proxy: secret name to the header's value; secret name to the gate that has passed."""
