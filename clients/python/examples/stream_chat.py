"""Stream two turns of a conversation with asyncio. Needs a running server: tokenwire serve --model PATH."""

import asyncio
import os

from tokenwire.client import AsyncClient


async def main() -> None:
    messages = [{"role": "system", "content": "You answer in one sentence."}]
    async with AsyncClient(os.environ.get("TOKENWIRE_ADDRESS", "127.0.0.1:50051")) as client:
        for question in ("What is a tokenizer?", "And what is a KV cache?"):
            messages.append({"role": "user", "content": question})
            print(f"> {question}")
            async with client.chat_stream(messages, max_new_tokens=100, temperature=0.7, seed=1) as stream:
                async for delta in stream:
                    print(delta.text, end="", flush=True)
            print()
            messages.append({"role": "assistant", "content": stream.text_so_far})


asyncio.run(main())
