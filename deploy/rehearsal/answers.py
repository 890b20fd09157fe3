"""Answers of the OpenAI API, whole and in pieces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .prompts import Ask

TOKEN = " tok"
"""Every token of an answer; four bytes, as prompts are counted."""


@dataclass(frozen=True)
class Answer:
    """Wording of the answer to one request.

    Attributes:
        ask: The request.
        chat: Whether it is a chat completion.
        name: Its identifier.
        created: When it came, seconds since 1970.
    """

    ask: Ask
    chat: bool
    name: str
    created: int

    def whole(self, tokens: int, reason: str) -> bytes:
        """The whole answer."""
        text = TOKEN * tokens
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return _json(self._framed([self._choice(said, reason)], whole=True) | {"usage": self._usage(tokens)})

    def first(self) -> bytes:
        """What a stream begins with: in a chat, who speaks."""
        return self._piece({"delta": {"role": "assistant", "content": ""}}, None) if self.chat else b""

    def token(self, reason: str | None) -> bytes:
        """One token; the last one says why it is the last."""
        return self._piece({"delta": {"content": TOKEN}} if self.chat else {"text": TOKEN}, reason)

    def stop(self, reason: str) -> bytes:
        """The end of a stream without a last token."""
        return self._piece({"delta": {}} if self.chat else {"text": ""}, reason)

    def last(self, tokens: int) -> bytes:
        """What a stream ends with: the counts if asked for, and the mark of the end."""
        counts = _event(self._framed([], whole=False) | {"usage": self._usage(tokens)}) if self.ask.usage else b""
        return counts + b"data: [DONE]\n\n"

    def _piece(self, said: dict[str, Any], reason: str | None) -> bytes:
        return _event(self._framed([self._choice(said, reason)], whole=False))

    def _choice(self, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason, "stop_reason": None}

    def _framed(self, choices: list[dict[str, Any]], *, whole: bool) -> dict[str, Any]:
        kind = "chat.completion" if whole else "chat.completion.chunk"
        return {
            "id": self.name,
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.ask.model,
            "choices": choices,
        }

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = self.ask.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + _json(content) + b"\n\n"
