"""What a client asks for: the body of a request, checked as far as the gateway needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from .prefixes import units_of
from .refusal import RefusalError

BYTES_PER_TOKEN = 4.0
"""At the start; OpenAI's rule of thumb for English text (help.openai.com, "What are tokens and how to count them?")."""


@dataclass(frozen=True)
class Prompt:
    """The prompt of a request.

    Attributes:
        text_bytes: Bytes of its texts, in UTF-8.
        token_ids: Number of its token ids, where it comes as such.
        parts: Texts and lists of token ids in their order.
    """

    text_bytes: int
    token_ids: int
    parts: tuple[str | list[int], ...]

    def units(self, tokens: int) -> tuple[int, ...]:
        """Hashes of its units of so many tokens, of which text is taken to have four characters each."""
        if len(self.parts) == 1 and not isinstance(self.parts[0], str):
            return units_of(self.parts[0], tokens)
        text = "\0".join(part for part in self.parts if isinstance(part, str))
        return units_of(text, int(tokens * BYTES_PER_TOKEN))


@dataclass(frozen=True)
class Asked:
    """A request of a client.

    Attributes:
        body: As it came.
        content: The same, parsed.
        model: Model that it asks for.
        stream: Whether the answer shall be streamed.
        prompt: The prompt.
    """

    body: bytes
    content: dict[str, Any]
    model: str
    stream: bool
    prompt: Prompt

    def body_for(self, model: str) -> bytes:
        """The body for a server that knows the model by another name."""
        return self.body if model == self.model else json.dumps({**self.content, "model": model}).encode()


def parse(body: bytes) -> Asked:
    """Checks a body.

    Raises:
        RefusalError: It is no JSON object, or names no model.
    """
    try:
        content = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as fault:
        raise RefusalError(400, "invalid_json", f"The body is not JSON: {fault}") from fault
    if not isinstance(content, dict):
        raise RefusalError(400, "invalid_json", "The body must be a JSON object.")
    model, stream = content.get("model"), content.get("stream")
    if not isinstance(model, str) or not model:
        raise RefusalError(400, "missing_model", "'model' must name a model.")
    if stream is not None and not isinstance(stream, bool):
        raise RefusalError(400, "invalid_stream", "'stream' must be true or false.")
    return Asked(body, content, model, bool(stream), prompt_of(content))


def prompt_of(content: dict[str, Any]) -> Prompt:
    """The prompt of a chat, a completion or an embedding; what is none of these is for the backend to refuse."""
    parts = tuple(_parts(content))
    text_bytes = sum(_utf8_length(part) for part in parts if isinstance(part, str))
    return Prompt(text_bytes, sum(len(part) for part in parts if not isinstance(part, str)), parts)


def _parts(content: dict[str, Any]) -> Iterator[str | list[int]]:
    messages = content.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield from _texts(message.get("content"))
    for key in ("prompt", "input"):
        yield from _prompts(content.get(key))


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]


def _prompts(prompt: object) -> Iterator[str | list[int]]:
    """A prompt is a text or a list of token ids; there may be several in a list."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt)):
        yield prompt
    elif isinstance(prompt, list):
        for item in prompt:
            if isinstance(item, str) or (isinstance(item, list) and all(type(token) is int for token in item)):
                yield item


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not in it")


class TokenRatio:
    """Bytes of text per prompt token, learnt from what answers tell of their prompts; the last hundred or so count."""

    KEPT = 0.99

    def __init__(self) -> None:
        self._tokens = 100.0
        self._bytes = self._tokens * BYTES_PER_TOKEN

    @property
    def bytes_per_token(self) -> float:
        """The ratio."""
        return self._bytes / self._tokens

    def tokens(self, prompt: Prompt) -> float:
        """Tokens of a prompt: exact for token ids, estimated for text."""
        return prompt.token_ids + prompt.text_bytes / self.bytes_per_token

    def learn(self, prompt: Prompt, tokens: int) -> None:
        """An answer has told how many tokens a prompt had."""
        if prompt.text_bytes and not prompt.token_ids and tokens > 0:
            self._bytes = self.KEPT * self._bytes + prompt.text_bytes
            self._tokens = self.KEPT * self._tokens + tokens
