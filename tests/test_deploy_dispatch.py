"""Which backend gets a request: the simulator's rules, and what the gateway adds to them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.deploy.gateway.backends import Backend
from llmcluster.deploy.gateway.config import BackendSpec, HealthSpec, QueueSpec
from llmcluster.deploy.gateway.dispatch import Ask, Dispatcher
from llmcluster.deploy.gateway.journey import Journey
from llmcluster.deploy.gateway.prefixes import PrefixCache, units_of
from llmcluster.deploy.gateway.prompts import TokenRatio, parse, prompt_of
from llmcluster.deploy.gateway.refusal import RefusalError
from llmcluster.deploy.gateway.sse import Events, Usage
from llmcluster.envs.actions import ALL_ROUTERS, RouterName
from llmcluster.envs.spec import SloSpec
from llmcluster.simulator.kernels.state import LEAST_OUTSTANDING, POWER_OF_TWO, PREFIX_AFFINITY, ROUND_ROBIN
from llmcluster.tests.by_hand import MS, PLAIN, call
from llmcluster.tests.machine import ENGINES, Policy, build

CODES: dict[RouterName, int] = {
    "round-robin": ROUND_ROBIN,
    "least-outstanding": LEAST_OUTSTANDING,
    "power-of-two": POWER_OF_TWO,
    "prefix-affinity": PREFIX_AFFINITY,
}


def dispatcher(weights: list[float], router: RouterName = "least-outstanding", most: int = 8) -> Dispatcher:
    backends = []
    for number, weight in enumerate(weights):
        spec = BackendSpec(name=str(number), url="http://127.0.0.1:1", model="m")
        backends.append(Backend(spec, HealthSpec(unhealthy_after=2, healthy_after=2), 100))
        backends[-1].weight = weight
    return Dispatcher(backends, QueueSpec(most=most, timeout_s=5.0), router)


def sent(made: Dispatcher, asks: list[Ask]) -> list[int]:
    """Backends of requests that come one after the other and stay."""

    async def send() -> list[int]:
        return [int((await made.acquire(ask)).spec.name) for ask in asks]

    return asyncio.run(send())


@pytest.mark.parametrize("router", ALL_ROUTERS)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3.0, 1.0, 0.5], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
def test_requests_go_where_the_simulator_sends_them(router: RouterName, weights: list[float]) -> None:
    calls = [replace(call(0, 1, 50), arrival_ps=i) for i in range(24)]
    engine = build(PLAIN, calls, Policy(router=CODES[router]), slots=[0] * len(weights), route_weight=weights)
    ENGINES["reference"](engine).advance(MS)
    assert sent(dispatcher(weights, router), [Ask("m")] * 24) == engine.requests["slot"].tolist()


def test_a_backend_without_weight_takes_what_the_others_have_no_room_for() -> None:
    made = dispatcher([1.0, 0.0])
    made.backends["0"].limit = 2
    assert sent(made, [Ask("m")] * 3) == [0, 0, 1]
    made.backends["1"].closed = True
    assert made.has_any(Ask("m")) and not made.has_other(Ask("m", tried=frozenset({"0"})))


def test_a_prefix_draws_a_request_unless_its_backend_is_loaded() -> None:
    made = dispatcher([1.0, 1.0], "prefix-affinity")
    first, second = Ask("m", (1, 2)), Ask("m", (5,))
    # At the sixth, five are under way: 0 has four, and one more would be above ⌈1.25 · 6 / 2⌉.
    assert sent(made, [first, second, Ask("m", (1, 2, 3)), first, first, first]) == [0, 1, 0, 0, 0, 1]


def test_who_was_failed_goes_elsewhere_and_before_the_others() -> None:
    made = dispatcher([1.0, 1.0])
    again = Ask("m", tried=frozenset({"0"}))
    assert sent(made, [again, again]) == [1, 1]

    async def wait() -> list[str]:
        made.backends["0"].limit = made.backends["1"].limit = 1
        got: list[str] = []

        async def take(name: str, ask: Ask) -> None:
            await made.acquire(ask)
            got.append(name)

        first = asyncio.create_task(take("first", Ask("m")))
        await asyncio.sleep(0)
        await first  # backend 0 has room for one
        tasks = [asyncio.create_task(take("new", Ask("m"))), asyncio.create_task(take("again", again))]
        await asyncio.sleep(0)
        assert made.held == 2
        made.release(made.backends["0"])  # not for the one that it has failed
        await tasks[0]
        made.release(made.backends["1"])
        made.release(made.backends["1"])
        await tasks[1]
        return got

    assert asyncio.run(wait()) == ["first", "new", "again"]


@given(st.lists(st.sampled_from(["come", "leave", "cancel", "fail", "mend"]), max_size=60))
def test_nothing_is_lost_and_no_limit_is_passed(steps: list[str]) -> None:
    async def play() -> None:
        made = dispatcher([1.0, 2.0], most=5)
        for backend in made.backends.values():
            backend.limit = 2
        waiting: list[asyncio.Task[Backend]] = []
        holding: list[Backend] = []
        for step in steps:
            if step == "come" and made.held < 5:
                waiting.append(asyncio.create_task(made.acquire(Ask("m"))))
            elif step == "come":
                with pytest.raises(RefusalError, match="full"):
                    await made.acquire(Ask("m"))
            elif step == "leave" and holding:
                made.release(holding.pop(0))
            elif step == "cancel" and waiting:
                waiting.pop().cancel()
            elif step == "fail":
                made.backends["0"].failed(certain=True)
            elif step == "mend":
                made.backends["0"].answered()
                if made.backends["0"].answered():
                    made.serve("m")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            holding += [task.result() for task in waiting if task.done()]
            waiting = [task for task in waiting if not task.done()]
            assert made.held == len(waiting)
            assert sum(backend.outstanding for backend in made.backends.values()) == len(holding)
            assert all(backend.outstanding <= 2 for backend in made.backends.values())
            room = [backend for backend in made.backends.values() if backend.usable and backend.has_room]
            assert not (room and waiting)
        for task in waiting:
            task.cancel()

    asyncio.run(play())


def test_health_has_thresholds() -> None:
    backend = dispatcher([1.0]).backends["0"]
    backend.failed()
    backend.answered()
    backend.failed()
    assert backend.healthy
    backend.failed()
    assert not backend.healthy
    assert [backend.answered(), backend.answered(), backend.answered()] == [False, True, False]
    backend.failed(certain=True)
    assert not backend.healthy


# ---------------------------------------------------------------------------------------- what is told of a request


def test_prefixes_are_whole_units_and_the_oldest_are_forgotten() -> None:
    assert units_of([1, 2, 3, 4, 5], 2) == units_of([1, 2, 3, 4], 2)
    assert units_of("abcd", 2)[0] == units_of("abxy", 2)[0] != units_of("xyab", 2)[0]
    assert units_of("abcd", 2)[1] != units_of("xycd", 2)[1]
    cache = PrefixCache(3)
    cache.add((1, 2))
    cache.add((5, 6))
    assert [cache.hits(units) for units in ((1, 2), (1,), (5, 6, 7), (8, 5))] == [1, 1, 2, 0]


def test_prompts_are_counted() -> None:
    chat = prompt_of(
        {"messages": [{"content": "abcd"}, {"content": [{"type": "text", "text": "ü"}, {"type": "image_url"}]}, 3]}
    )
    assert (chat.text_bytes, chat.token_ids) == (6, 0)
    assert prompt_of({"prompt": [1, 2, 3]}).token_ids == 3
    assert prompt_of({"prompt": [[1, 2], [3]], "input": ["ab", "c"]}).token_ids == 3
    assert prompt_of({"prompt": [[1, 2], [3]], "input": ["ab", "c"]}).text_bytes == 3
    assert prompt_of({"prompt": [True, 1.5, None], "messages": 3}).parts == ()
    assert parse(b'{"model": "m", "stream": null}').stream is False


def test_the_ratio_of_bytes_to_tokens_is_learnt() -> None:
    ratio, text = TokenRatio(), prompt_of({"prompt": "x" * 300})
    assert ratio.tokens(text) == 75
    assert ratio.tokens(prompt_of({"prompt": [7] * 9})) == 9
    for _ in range(2000):
        ratio.learn(text, 100)
        ratio.learn(prompt_of({"prompt": [7] * 9}), 1000)
    assert ratio.tokens(text) == pytest.approx(100, rel=1e-3)


def test_events_are_cut_after_whole_ones() -> None:
    whole = b'data: {"a": 1}\n\ndata: 2\n\n'
    for cut in range(len(whole) + 1):
        events = Events()
        first, second = events.feed(whole[:cut]), events.feed(whole[cut:])
        assert first + second + events.flush() == whole
        assert first == b"" or first.endswith(b"\n\n")
    events = Events()
    assert events.feed(b"data: 1\r\n\r\ndata") == b"data: 1\r\n\r\n"
    assert events.feed(b"x" * 2**21) == b"data" + b"x" * 2**21


@pytest.mark.parametrize(
    ("event", "chunks"),
    [
        (b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}', 0),
        (b'{"choices": [{"delta": {"content": "a"}}]}', 1),
        (b'{"choices": [{"delta": {"reasoning_content": "a"}}]}', 1),
        (b'{"choices": [{"delta": {"tool_calls": [{}]}}]}', 1),
        (b'{"choices": [{"text": "a"}]}', 1),
        (b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}', 0),
        (b'{"choices": [3], "usage": 4}', 0),
        (b"[1", 0),
        (b"3", 0),
        (b"[DONE]", 0),
    ],
)
def test_content_is_told_from_the_rest(event: bytes, chunks: int) -> None:
    usage = Usage()
    assert usage.read_events(b"event: x\ndata: " + event + b"\n\n") == bool(chunks)
    assert usage.chunks == chunks
    usage.read_answer(b'{"usage": {"prompt_tokens": 3, "completion_tokens": 5}}')
    usage.read_answer(b'{"usage": {"prompt_tokens": -1, "completion_tokens": true}}')
    assert (usage.prompt_tokens, usage.output_tokens) == (3, 5)


TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
LAST = b'data: {"choices": [], "usage": {"completion_tokens": 9}}\n\n'


@pytest.mark.parametrize(
    ("times_s", "usage", "status", "met"),
    [
        ([1.0, 1.1, 1.2], False, 200, True),
        ([2.1, 2.2], False, 200, False),  # the first token too late
        ([1.0, 1.3], False, 200, False),  # 0.3 s per token
        ([1.0, 2.0], True, 200, True),  # nine tokens in two events: 0.125 s per token
        ([1.0], False, 200, True),
        ([], False, 200, True),  # no content; it ended at 2 s
        ([1.0, 1.1], False, 502, False),
        ([], False, 429, False),
        ([], False, 400, True),
        ([], False, 499, False),
    ],
)
def test_streams_are_judged(times_s: list[float], usage: bool, status: int, met: bool) -> None:
    journey = Journey(parse(b'{"model": "m"}'), "default", SloSpec(ttft_s=2.0, tpot_s=0.15), 10.0)
    journey.status, journey.streamed = status, True
    for at_s in times_s:
        journey.pass_events(TOKEN, 10.0 + at_s)
    if usage:
        journey.pass_events(LAST, 13.0)
    assert journey.met_slo(12.0) is met
    journey.broken = True
    assert journey.met_slo(12.0) is False


@pytest.mark.parametrize(
    ("tokens", "took_s", "met"), [(11, 3.4, True), (11, 3.6, False), (None, 1.9, True), (0, 2.1, False)]
)
def test_answers_in_one_piece_are_judged_by_their_length(tokens: int | None, took_s: float, met: bool) -> None:
    journey = Journey(parse(b'{"model": "m"}'), "default", SloSpec(ttft_s=2.0, tpot_s=0.15), 10.0)
    journey.status, journey.usage.output_tokens = 200, tokens
    assert journey.met_slo(10.0 + took_s) is met
