"""A TCP proxy that delays: a round trip through it takes `seconds` longer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Pass bytes on, in order, each after its delay."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            queue.put_nowait((loop.time() + seconds, data))
    queue.put_nowait((loop.time() + seconds, b""))
    with contextlib.suppress(ConnectionError):
        await delivery


@contextlib.contextmanager
def delayed(host: str, port: int, seconds: float) -> Iterator[int]:
    """A port on 127.0.0.1 that leads to `host:port`, with `seconds` more per round trip."""
    loops: list[asyncio.AbstractEventLoop] = []
    ready: list[int] = []
    started = threading.Event()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds / 2)  # the SYN is on its way, too
        far_reader, far_writer = await asyncio.open_connection(host, port)
        open_ends.update((writer, far_writer))
        await asyncio.gather(pump(reader, far_writer, seconds / 2), pump(far_reader, writer, seconds / 2))

    ended = asyncio.Event()
    open_ends: set[asyncio.StreamWriter] = set()

    async def serve() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        loops.append(asyncio.get_running_loop())
        ready.append(server.sockets[0].getsockname()[1])
        started.set()
        await ended.wait()
        server.close()
        for end in open_ends:
            end.transport.abort()  # a connection that is kept ends with the proxy
        await asyncio.sleep(2 * seconds + 0.1)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    started.wait(5)
    try:
        yield ready[0]
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join(5)
