"""instructor, unmodified: prints what it saw as one JSON object. The backend calls `Capital` three times, once wrongly."""

import asyncio
import json
import os

import instructor
import openai
from pydantic import BaseModel, field_validator

WHERE = {"base_url": os.environ["KALA_URL"] + "/v1", "api_key": os.environ["KALA_API_KEY"], "max_retries": 0}
QUESTION = [{"role": "user", "content": "Which is France's capital?"}]


class Capital(BaseModel):
    """A country's capital."""

    country: str
    capital: str

    @field_validator("capital")
    @classmethod
    def is_a_name(cls, value: str) -> str:
        if not value.istitle():
            raise ValueError("write the name with a capital letter")
        return value


async def later() -> Capital:
    async with openai.AsyncOpenAI(**WHERE) as client:
        return await instructor.from_openai(client).create(
            model="auto", response_model=Capital, messages=QUESTION
        )


client = instructor.from_openai(openai.OpenAI(**WHERE))
first, completion = client.create_with_completion(
    model="auto", response_model=Capital, messages=QUESTION, max_retries=2
)
print(json.dumps({
    "first": first.model_dump(), "finish": completion.choices[0].finish_reason,
    "kala": completion.model_extra["kala"]["receipt"]["status"], "later": asyncio.run(later()).model_dump(),
}))  # fmt: skip
