"""Where the guard's parts meet the rendered documents: ports, sizes, names. With nothing to import, so that the guard starts quickly."""

from __future__ import annotations

# The guard's listeners on the gateway address. They are the instance's own, so every instance uses the same numbers. All are below
# 1024, where only root may listen: no other local user can take the guard's place, before it starts or after it was killed. IANA has
# assigned no service to 914-952 and 954-988 (service-names-port-numbers, apart from 953, rndc).
DNS_PORT = 53
HTTP_PORT = 914
TLS_PORT = 915
OTHER_PORT = 916
INBOX_PORT = 917
OTLP_PORT = 918
# One for each credential that the guard uses for the guest; a profile has 50 secrets at most.
BROKER_PORTS = (*range(919, 953), *range(954, 970))
# A host where other users may listen on these ports is refused.
LAST_PORT = BROKER_PORTS[-1]

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
