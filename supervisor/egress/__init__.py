"""The one way from a build into the network: an HTTP proxy that the supervisor runs per machine.

A machine has no network card. With `network_mode=egress` its vsock port 3128 leads here, and each
request goes through the same steps, of which all but two are pure functions:

    target as written → Destination → ports, allowed_domains → resolve → addresses → connect
        targets.py                       policy.py         resolver.py addresses.py way_out.py

The address that was checked is the address that is connected to; nothing resolves a name twice.

With `allowed_domains`, the first message of a tunnel must be a TLS hello that names an allowed
server (opening.py). What it does not see is what the tunnel carries then: a server that lets a
client say one name in its hello and another inside lets builds do so.
"""
