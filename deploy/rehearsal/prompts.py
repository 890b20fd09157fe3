"""What a request of the OpenAI API asks for, as far as it matters to an emulated server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

BYTES_PER_TOKEN = 4
"""Prompts that come as text have a token for so many bytes of UTF-8, about what tokenizers make of English."""

DEFAULT_TOKENS = 16
"""Of a completion that does not say how long it may be: the API's own default."""

DEFAULT_CHAT_TOKENS = 256
"""Of a chat that does not. vLLM would go on until the model stops or the context is full; nothing here ever stops."""


class RefusedError(Exception):
    """A request that the API does not take.

    Args:
        message: Says why.
        code: HTTP status.
        kind: vLLM's name for it.
    """

    def __init__(self, message: str, code: int = 400, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.code, self.kind = code, kind

    @property
    def body(self) -> dict[str, Any]:
        """The answer, as vLLM words it."""
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": self.code}}


@dataclass(frozen=True)
class Ask:
    """What is asked for.

    Attributes:
        model: The model's name.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer: no more and no less, as with `ignore_eos`.
        stream: Whether each token is sent as it comes.
        usage: Whether a stream ends with the counts of tokens.
    """

    model: str
    prompt_tokens: int
    output_tokens: int
    stream: bool
    usage: bool


def parse(content: bytes, *, chat: bool, max_tokens: int) -> Ask:
    """Reads the body of a request.

    Args:
        content: The body.
        chat: Whether it is a chat completion.
        max_tokens: The context limit.

    Raises:
        RefusedError: It is none, or asks for what cannot be had.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise RefusedError("the body is no JSON") from None
    if not isinstance(body, dict):
        raise RefusedError("the body is no JSON object")
    if body.get("n", 1) not in (1, None):
        raise RefusedError("only n = 1 is emulated")
    prompt = _chat_tokens(body.get("messages")) if chat else _prompt_tokens(body.get("prompt"))
    output = body.get("max_completion_tokens") if chat else None
    output = body.get("max_tokens") if output is None else output
    output = (DEFAULT_CHAT_TOKENS if chat else DEFAULT_TOKENS) if output is None else output
    if not isinstance(output, int) or isinstance(output, bool) or output < 1:
        raise RefusedError(f"max_tokens must be at least 1, got {output}.")
    if prompt + output > max_tokens:
        raise RefusedError(
            f"This model's maximum context length is {max_tokens} tokens. However, you requested {prompt + output} "
            f"tokens ({prompt} in the messages, {output} in the completion). Please reduce the length of the messages "
            "or completion."
        )
    options = body.get("stream_options")
    usage = isinstance(options, dict) and options.get("include_usage") is True
    return Ask(str(body.get("model", "")), prompt, output, body.get("stream") is True, usage)


def _prompt_tokens(prompt: Any) -> int:
    """Length of a prompt: token ids, or text; one of them, as such or as a list of one."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list | str):
        prompt = prompt[0]
    if isinstance(prompt, list) and all(type(token) is int and token >= 0 for token in prompt):
        count = len(prompt)
    elif isinstance(prompt, str):
        count = _text_tokens(prompt)
    else:
        raise RefusedError("prompt must be one text, or one list of token ids")
    if not count:
        raise RefusedError("prompt must not be empty")
    return count


def _chat_tokens(messages: Any) -> int:
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages must be a list, and not empty")
    texts: list[str] = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return max(_text_tokens("".join(texts)), 1)


def _text_tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)
