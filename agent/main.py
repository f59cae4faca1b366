"""`builder-agent`: the program of a builder machine. When it ends, the machine is powered off.

Somebody waits for every boot, so: listen, start BuildKit (which comes up beside the rest), greet
the supervisor, and only then load what takes long to load.
"""

from __future__ import annotations

from agent import greeting, rootless, seccomp

GREET_SECONDS = 0.2
"""How long the supervisor is awaited before the rest is loaded. It tries to connect all the time;
if it comes later, it is greeted later."""


def main() -> int:
    """Run the agent until the machine's work is done."""
    timeline = {"process": greeting.process_start(), "agent": greeting.uptime()}
    listener = greeting.listen()
    # Before there is a thread or a child, so that everything in the machine has it.
    seccomp.refuse_socketcall()
    rootless.prepare_directories()
    started = rootless.start(rootless.DEFAULT_MIRRORS)
    greeted = greeting.greet(listener, timeline, GREET_SECONDS)

    from agent import machine, wire  # the heavy part

    machine.run(
        listener.detach(),
        greeted.detach() if greeted is not None else None,
        wire.Hello(**greeting.hello_fields(timeline)),
        started,
    )
    return 0
