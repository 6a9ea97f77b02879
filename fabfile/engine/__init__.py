"""The engine: from resources to a report. See `converge.py` and, for what runs on the target, `agent/`."""

import sys

# Invoke forbids Python to keep what it compiles, and to compile all of this again takes 30 ms of every command.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
