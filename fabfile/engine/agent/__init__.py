"""The program that runs as root on the target, and how it gets there.

Standard library only, Python 3.10 or later. Its modules arrive on stdin as one program, with the job behind it (see
`../transport.py` for the frames); it answers one JSON object per line on stdout. It leaves nothing on the target but
its state:

    /var/lib/knockmap/journal/   what was there before our first change: journal.json and objects/<sha256>
    /var/lib/knockmap/secrets/   secrets that were born there
    /var/lib/knockmap/incoming/  large files on their way, resumed by the next run

In check mode it writes nothing at all. If the operator goes away it finishes the resource at hand and stops.

    main → converge, undo → files, packages, rules, rest, accounts, commands → facts → elastic, units → item → journal → paths → start → machine → wire
"""

from pathlib import Path

MODULES = (
    *("wire", "machine", "start", "paths", "journal", "item", "units", "facts"),
    *("files", "packages", "rules", "accounts", "commands", "rest", "elastic"),
    *("converge", "undo", "main"),
)

# A module is compiled when it is imported, and what a job does not need is not: it all adds to the time of every run.
_LOADER = """
import sys, types
class Importer:
    def find_spec(self, name, path=None, target=None):
        return type(sys.__spec__)(name, self) if name.startswith("agent.") else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        name = module.__name__.partition(".")[2]
        exec(compile(MODULES[name], "agent/" + name + ".py", "exec"), module.__dict__)
package = sys.modules["agent"] = types.ModuleType("agent")
package.__path__ = []
sys.meta_path.insert(0, Importer())
from agent.start import begin
job = begin()
from agent.main import main
main(job)
"""


def program() -> bytes:
    """The agent as one Python source: its modules as text, and the few lines that load them."""
    folder = Path(__file__).parent
    sources = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    return f"MODULES = {sources!r}\n{_LOADER}".encode()
