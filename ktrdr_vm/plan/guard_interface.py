"""Constants of the guard and of the rendered documents: ports, sizes, names. Without imports, so that the guard starts
quickly."""

from __future__ import annotations

# The two ends of the link, the same in every instance: each has a network namespace of its own.
GATEWAY, GUEST = "10.213.0.1", "10.213.0.2"
# Their MAC addresses: a template is saved with its NIC, and a resumed guest has the gateway's in its ARP cache.
GATEWAY_MAC, GUEST_MAC = "fe:54:00:a2:13:01", "52:54:00:a2:13:02"

# The listeners of the guard on the gateway address, in the namespace of the instance. IANA has assigned no service to
# 914-952 and 954-988 (service-names-port-numbers, apart from 953, rndc).
DNS_PORT = 53
HTTP_PORT = 914
TLS_PORT = 915
OTHER_PORT = 916
INBOX_PORT = 917
OTLP_PORT = 918
# One for each brokered secret; a profile has at most 50 secrets.
BROKER_PORTS = (*range(919, 953), *range(954, 970))

# A guest that scans fills these sets; further destinations are counted together.
DENIED_SIZE = 4096
ALLOWED_SIZE = 4096
# Maximal tracked TCP connections of one guest, including half-open ones: four times the limit of its proxy.
MAX_FLOWS = 4096

# Granted names to the grant slots; the guard writes these files next to the name lists.
GRANT_MAPS = ("http.granted", "http.granted_suffixes", "tls.granted", "tls.granted_suffixes")
# Names with the addresses that the resolver returned to the guest, as `name@address`: the proxy need not resolve them
# again.
GIVEN = "given.addresses"
# More than there are grants at one time, so that a grant slot is not reused immediately.
GRANT_SLOTS = 64

VALUES, OPEN = "broker.values", "broker.open"
"""Maps of the proxy: secret name to the value of the header; secret name to the passed gate."""
