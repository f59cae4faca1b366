"""The one way from a build into the network: an HTTP proxy that the supervisor runs per machine.

A machine has no network card. With `network_mode=egress` its vsock port 3128 leads here, and each
request goes through the same steps, of which all but two are pure functions:

    target as written → Destination → ports, allowed_domains → resolve → addresses → connect
        targets.py                       policy.py         resolver.py addresses.py way_out.py

The address that was checked is the address that is connected to; nothing resolves a name twice.

What it does not see: what a tunnel carries. A server that answers for many names (a CDN) can be
asked for any of them through a tunnel to one that is allowed.
"""
