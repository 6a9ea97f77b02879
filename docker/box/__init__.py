"""A disposable VPS in Docker, for `invoke box.*`, the container tests, the demo and the benchmarks.

box = up(name="box", release="trixie")      a machine with sshd on 127.0.22.N:22, fresh as from a provider
box.run(["ss", "-ltn"])                     look into it (never to prove that a login works)
attack(box, sources=40, count=200)          SYNs from addresses all over the world, through real netfilter
down("box")                                 nothing of it is left
"""

from .attack import Attack, attack
from .images import BoxError
from .machine import Box, boxes, down, up

__all__ = ["Attack", "Box", "BoxError", "attack", "boxes", "down", "up"]
