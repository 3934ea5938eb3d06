"""pydantic-ai over KALA: an agent with a tool of its own and an answer of a type.

pip install 'pydantic-ai-slim[openai]'
export KALA_URL=http://127.0.0.1:8800 KALA_API_KEY=$(cat ~/.local/state/kala/keys/cli.key)
python examples/pydantic_ai_agent.py
"""

from __future__ import annotations

import asyncio
import os

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent() -> Agent[None, str]:
    """An agent whose every question to the model, and every call by it, is judged and logged."""
    provider = OpenAIProvider(base_url=os.environ["KALA_URL"] + "/v1", api_key=os.environ["KALA_API_KEY"])
    made = Agent(OpenAIChatModel("auto", provider=provider), system_prompt="Be brief.")

    @made.tool_plain
    def stock(article: str) -> int:
        """How many of an article are in stock."""
        return {"bolts": 120, "nuts": 80}.get(article, 0)

    return made


async def main() -> None:
    """Ask, stream, and be refused."""
    with_tool = agent()
    result = await with_tool.run("How many bolts are in stock? Use the tool.")
    print(f"agent:   {result.output}")
    for message in result.all_messages():
        for part in message.parts:
            if part.part_kind == "tool-return":
                print(f"tool:    {part.tool_name} said {part.content}")
    print("stream:  ", end="")
    async with with_tool.run_stream("What is machine learning?") as answer:
        async for piece in answer.stream_text(delta=True):
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    asyncio.run(main())
