"""How `nats-py` behaves where a server shows itself: at the door, under TLS, when it goes away or cuts somebody off.

    python behaviours.py URL BEHAVIOUR     shows one behaviour; prints `ok BEHAVIOUR` and exits with 0 when it holds
    python behaviours.py --list            prints the names of all behaviours

Lines that start with `{` are what the client saw, one JSON object each; other lines ask the test to do something to the
server, or to this process. Nothing here is particular to one server. The names are the ones of every other client.
"""

import asyncio
import sys
import traceback

from behaviour import access, encryption, life, limits, services
from harness import Bus

BEHAVIOURS = {
    behaviour.__name__: behaviour
    for module in [access, encryption, life, limits, services]
    for behaviour in module.BEHAVIOURS
}


async def run(url, name):
    bus = Bus(url)
    await BEHAVIOURS[name](bus)
    await bus.close()


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(BEHAVIOURS))
        return 0
    url, name = sys.argv[1:]
    try:
        asyncio.run(run(url, name))
    except Exception:
        traceback.print_exc()
        return 1
    print(f"ok {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
