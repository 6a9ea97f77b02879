"""The program that runs as root on the target, and how it gets there.

Standard library only, Python 3.10 or later. Its modules arrive on stdin as one program, with the job behind it (see
`../transport.py` for the frames); it answers one JSON object per line on stdout. It leaves nothing on the target but
its state:

    /var/lib/knockmap/journal/   what was there before our first change: journal.json and objects/<sha256>
    /var/lib/knockmap/secrets/   secrets that were born there
    /var/lib/knockmap/incoming/  large files on their way, resumed by the next run

In check mode it writes nothing at all. If the operator goes away it finishes the resource at hand and stops.

    main → converge, undo → elastic, rest, files, packages, rules, accounts, commands → facts → units → item → journal → paths → start → machine → wire
"""

from pathlib import Path

MODULES = (
    *("wire", "machine", "start", "paths", "journal", "item", "units", "facts"),
    *("files", "packages", "rules", "accounts", "commands", "rest", "elastic"),
    *("converge", "undo", "main"),
)

_LOADER = """
import sys, types
package = sys.modules["agent"] = types.ModuleType("agent")
package.__path__ = []
for name, source in MODULES.items():
    module = sys.modules["agent." + name] = types.ModuleType("agent." + name)
    module.__package__ = "agent"
    setattr(package, name, module)
    exec(compile(source, "agent/" + name + ".py", "exec"), module.__dict__)
    if name == "start":
        job = module.begin()
module.main(job)
"""


def program() -> bytes:
    """The agent as one Python source: its modules as text, in order of import, and the few lines that load them."""
    folder = Path(__file__).parent
    sources = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    return f"MODULES = {sources!r}\n{_LOADER}".encode()
