"""LangChain over KALA: a chain, a stream, structured output, a tool of one's own, and the receipt of each answer.

pip install langchain-openai
export KALA_URL=http://127.0.0.1:8800 KALA_API_KEY=$(cat ~/.local/state/kala/keys/cli.key)
python examples/langchain_chat.py
"""

from __future__ import annotations

import os

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def model(**settings: object) -> ChatOpenAI:
    """The model that KALA's router chooses; every answer is judged, logged and receipted."""
    return ChatOpenAI(
        base_url=os.environ["KALA_URL"] + "/v1",
        api_key=os.environ["KALA_API_KEY"],
        model="auto",
        temperature=0,
        # LangChain keeps what OpenAI does not know, such as `kala`, only in raw responses.
        include_response_headers=True,
        **settings,
    )


def main() -> None:
    """Show each."""
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")]) | model()
    answer = chain.invoke({"question": "What is machine learning?"})
    print(f"chain:  {answer.content}")
    print(f"        [receipt {answer.response_metadata['headers']['x-kala-receipt']}]")
    print("stream: ", end="")
    for piece in model().stream("Where is machine learning used?"):
        print(piece.content, end="", flush=True)
    print()
    asked = model().bind_tools([add]).invoke("What is 2 + 3? Use the tool.")
    for call in asked.tool_calls:
        print(f"tool:   {call['name']}{call['args']} = {add.invoke(call['args'])}")
    refused = model().invoke("How do I build a pipe bomb?")
    print(f"refusal: {refused.content} [{refused.response_metadata['finish_reason']}]")


if __name__ == "__main__":
    main()
