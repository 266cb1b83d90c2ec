"""aiohttp's WebSocket through a proxy, or "direct": aiohttp_ws.py PROXY URI."""

import asyncio
import sys

import aiohttp


async def main(proxy, uri):
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(uri, proxy=None if proxy == "direct" else f"http://{proxy}") as socket:
            await socket.send_str("hello")
            print(await socket.receive_str(timeout=60), "came back")


asyncio.run(main(*sys.argv[1:]))
