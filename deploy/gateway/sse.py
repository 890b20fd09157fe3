"""Server-sent events of a streamed answer: whole ones are passed on as they are, and looked at on the way."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

END = b"\n\n"
HOLD_BYTES = 2**20


class Events:
    """Cuts a stream of bytes after whole events, so that an answer that breaks off ends between two of them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """What is whole by now; an event of more than a mebibyte is passed on in pieces."""
        if not self._rest and chunk.endswith((END, b"\r\n\r\n")):
            return chunk
        chunk = self._rest + chunk
        end = max(_after(chunk, END), _after(chunk, b"\r\n\r\n"))
        if len(chunk) - end > HOLD_BYTES:
            end = len(chunk)
        self._rest = chunk[end:]
        return chunk[:end]

    def flush(self) -> bytes:
        """What is left at the end of the stream."""
        rest, self._rest = self._rest, b""
        return rest


def _after(chunk: bytes, end: bytes) -> int:
    at = chunk.rfind(end)
    return 0 if at < 0 else at + len(end)


class Usage:
    """What an answer says of its tokens, and of how many chunks they came in.

    Attributes:
        prompt_tokens: Tokens of the prompt; None where it does not say.
        output_tokens: Tokens of the answer; None where it does not say.
        chunks: Events with content.
    """

    def __init__(self) -> None:
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.chunks = 0

    def read_events(self, events: bytes) -> bool:
        """Looks at whole events; True where one of them has content."""
        before = self.chunks
        for line in events.splitlines():
            if line.startswith(b"data:") and not line.startswith(b"data: [DONE]"):
                self.read_answer(line[5:])
        return self.chunks > before

    def read_answer(self, text: bytes) -> None:
        """Looks at a JSON object: an event, or a whole answer. What is none tells nothing."""
        try:
            answer = from_json(text)  # a quarter of the time that `json.loads` takes
        except ValueError:
            return
        if not isinstance(answer, dict):
            return
        self.chunks += _has_content(answer)
        usage = answer.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
            self.output_tokens = _count(usage.get("completion_tokens"), self.output_tokens)


def _has_content(event: dict[str, Any]) -> bool:
    """Whether an event brings tokens; a chat's first one, which only says who speaks, does not."""
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        if choice.get("text") or (isinstance(delta, dict) and any(delta.get(key) for key in CONTENT)):
            return True
    return False


CONTENT = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")
"""Keys of a delta under which tokens come; `reasoning_content` and `reasoning` are vLLM's."""


def _count(value: object, otherwise: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else otherwise
