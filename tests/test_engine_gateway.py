"""Cases of several slots worked by hand, in milliseconds, for both engines: holding, failure and hand-over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmcluster.simulator.kernels.state import (
    AT_GATEWAY,
    C_GATEWAY_COUNT,
    C_LIMITED,
    C_SENT,
    C_SENT_TOKENS,
    DECODE,
    EMPTY,
    FAIL,
    FAILED,
    FINISHED,
    LOST,
    PREFILL,
    RESTART,
    RETRY,
    SERVING,
    TIMED_OUT,
)
from llmcluster.tests.by_hand import END, FLAT, MS, PLAIN, W_MS, J, call, ms
from llmcluster.tests.machine import Factory, Machine, Policy, build, note_coupling
from llmcluster.tests.strategies import ROUTERS

# -------------------------------------------------------------------------------------------------------------- holding


def test_a_limit_holds_requests_at_the_gateway(make: Factory) -> None:
    engine = build(PLAIN, [call(0, 4, 3), call(1, 2, 1), call(2, 2, 1)], limit=1)
    driver = make(engine)
    driver.advance(2 * MS + 1)
    assert (engine.cursor[C_GATEWAY_COUNT], engine.slots["outstanding"][0]) == (2, 1)
    driver.advance(END)
    # The first finishes at 59; a picosecond later there is room. 10 + max(4, 5), and again.
    rows = engine.requests
    assert rows["admit_ps"].tolist() == [0, 59 * MS + 1, 74 * MS + 2]
    assert rows["finish_ps"].tolist() == [59 * MS, 74 * MS + 1, 89 * MS + 2]


@pytest.mark.parametrize("router", ROUTERS)
def test_who_arrives_as_room_comes_has_it_at_once(make: Factory, router: int) -> None:
    engine = build(FLAT, [call(0, 4, 1), call(18, 4, 1)], Policy(router=router), limit=1)
    make(engine).advance(END)
    assert engine.requests["admit_ps"].tolist() == [0, 18 * MS]


def test_room_is_used_a_picosecond_later_even_if_a_request_arrives_as_it_comes(make: Factory) -> None:
    machines = [FLAT, replace(FLAT, model=1)]
    calls = [call(0, 4, 3, model=0), call(0, 4, 9, model=0), call(1, 4, 1, model=0), call(56, 4, 1, model=1)]
    engine = build(machines, calls, limit=2)
    make(engine).advance(END)
    # 26 for both prompts, two decodes of 15: the first finishes as the fourth arrives elsewhere. A picosecond later the
    # third is sent, while the second decodes on until 71.
    assert engine.requests["admit_ps"].tolist() == [0, 0, 71 * MS, 56 * MS]


def test_a_limit_that_is_raised_lets_held_requests_in_at_once(make: Factory) -> None:
    engine = build(PLAIN, [call(0, 4, 3), call(1, 2, 1)], limit=1)
    driver = make(engine)
    driver.advance(10 * MS)
    engine.slots["limit"] = 2
    note_coupling(engine)
    assert engine.cursor[C_LIMITED]
    driver.advance(10 * MS + 1)
    assert engine.slots["outstanding"][0] == 2
    driver.advance(END)
    assert ms(engine, 1)[0] == 18


def test_requests_wait_behind_those_of_their_model_only(make: Factory) -> None:
    # Slot 0 serves model 0 and takes one request at a time, slot 1 serves model 1 but only small requests.
    machines = [PLAIN, replace(PLAIN, model=1, max_model_len=5)]
    calls = [
        call(0, 4, 3, model=0),  # is served by slot 0 until 59
        call(1, 1, 1, model=0),  # held
        call(2, 9, 1, model=-1),  # too large for slot 1, held
        call(3, 1, 1, model=0),  # held
        call(4, 1, 1, model=1),  # finds room at once
    ]
    engine = build(machines, calls, slots=[0, 1], limit=[1, 5])
    make(engine).advance(END)
    # 15 ms for one token, 28 for nine: at 59 the first held one is next; then the large one, which names no model; the
    # third had to wait for both. Each comes a picosecond after the one before has left.
    assert engine.requests["admit_ps"].tolist() == [0, 59 * MS + 1, 74 * MS + 2, 102 * MS + 3, 4 * MS]


@pytest.mark.parametrize(("retries", "sendings", "end_ps"), [(0, 1, 22 * MS + 1), (2, 3, 92 * MS + 3)])
def test_patience_ends_at_the_gateway(make: Factory, retries: int, sendings: int, end_ps: int) -> None:
    # Patience of 20 is over a picosecond later. Then 10 until it is sent again, and 20 after that.
    engine = build(PLAIN, [call(2, 4, 1, timeout_ms=20)], Policy(retries=retries, backoff_ps=10 * MS), status=EMPTY)
    make(engine).advance(END)
    row = engine.requests[0]
    assert (row["status"], row["finish_ps"], row["attempts"]) == (TIMED_OUT, end_ps, retries)
    assert engine.cursor[C_SENT] == sendings and row["sent_ps"] == end_ps - 20 * MS - 1
    assert engine.cursor[C_GATEWAY_COUNT] == 0


def test_each_held_client_gives_up_in_its_own_time(make: Factory) -> None:
    calls = [replace(call(0, 4, 1, timeout_ms=20), arrival_ps=i) for i in range(3)]
    engine = build(PLAIN, calls, status=EMPTY)
    make(engine).advance(END)
    assert (engine.requests["finish_ps"] - 20 * MS).tolist() == [1, 2, 3]


def test_a_held_client_gives_up_and_comes_again_to_the_end_of_the_line(make: Factory) -> None:
    calls = [call(0, 4, 3), call(1, 2, 1, timeout_ms=20), call(30, 1, 1)]
    engine = build(PLAIN, calls, Policy(retries=1, backoff_ps=20 * MS), limit=1)
    driver = make(engine)
    driver.advance(25 * MS)
    assert (engine.cursor[C_GATEWAY_COUNT], engine.requests["attempts"][1]) == (0, 1)
    driver.advance(END)
    # It gives up at 21 ms and 1 ps and comes again 20 ms later, now behind the third: that is served from 59 ms and
    # 1 ps to 74. So it gives up again, at 61 ms and 2 ps.
    assert engine.requests["admit_ps"].tolist() == [0, -1, 59 * MS + 1]
    assert (engine.requests["status"][1], engine.requests["sent_ps"][1]) == (TIMED_OUT, 41 * MS + 1)
    assert engine.requests["finish_ps"].tolist() == [59 * MS, 61 * MS + 2, 74 * MS + 1]
    assert (engine.cursor[C_SENT], engine.cursor[C_SENT_TOKENS]) == (4, 4 + 2 * 2 + 1)


@pytest.mark.parametrize("retries", [0, 1])
def test_patience_ends_in_the_queue_of_a_slot(make: Factory, retries: int) -> None:
    calls = [call(0, 4, 3), call(1, 2, 1, timeout_ms=20)]
    engine = build(replace(PLAIN, max_num_seqs=1), calls, Policy(retries=retries, backoff_ps=30 * MS))
    make(engine).advance(END)
    # The slot considers the second when it has finished the first, at 59, which is too late.
    if retries:
        assert ms(engine, 1) == (89, 104, 104)
        assert (engine.requests["sent_ps"][1], engine.requests["arrival_ps"][1]) == (89 * MS, 1 * MS)
    else:
        assert (engine.requests["status"][1], engine.requests["finish_ps"][1]) == (TIMED_OUT, 59 * MS)
        assert engine.requests["admit_ps"][1] == -1
    assert engine.slots["outstanding"][0] == 0


def test_arrivals_come_before_answers_of_the_same_instant(make: Factory) -> None:
    calls = [call(0, 4, 1, follower=1), call(0, 4, 1, think_ps=7 * MS), call(25, 4, 1)]
    engine = build(replace(FLAT, max_num_seqs=1), calls)
    make(engine).advance(END)
    assert [ms(engine, row)[0] for row in range(3)] == [0, 43, 25]


def test_a_closed_loop_client_that_tries_again_counts_from_its_first_arrival(make: Factory) -> None:
    calls = [call(0, 4, 1, follower=1), call(0, 4, 1, timeout_ms=20, think_ps=7 * MS), call(1, 4, 3)]
    engine = build(replace(FLAT, max_num_seqs=1), calls, Policy(retries=1, backoff_ps=30 * MS))
    make(engine).advance(END)
    # 18, then 7 of thought; the third has the slot from 18 to 66, which is too long; 30 later it is sent again.
    assert ms(engine, 1) == (96, 114, 114)
    assert (engine.requests["arrival_ps"][1], engine.requests["sent_ps"][1]) == (25 * MS, 96 * MS)


def test_a_closed_loop_client_answers_after_its_think_time(make: Factory) -> None:
    calls = [call(0, 4, 1, follower=1), call(5, 2, 1, think_ps=7 * MS, follower=2), call(90, 2, 1, think_ps=0)]
    engine = build(PLAIN, calls)
    make(engine).advance(END)
    # 18, then 7 of thought; 15; the third is due a picosecond after 40 but not before 90.
    assert engine.requests["arrival_ps"].tolist() == [0, 25 * MS, 90 * MS]
    assert engine.requests["finish_ps"].tolist() == [18 * MS, 40 * MS, 105 * MS]
    assert engine.cursor[C_SENT] == 3


# -------------------------------------------------------------------------------------------------------------- failure


@pytest.mark.parametrize(
    ("policy", "statuses", "times"),
    [
        # The second, alone on slot 1, decodes and reads 5 and 6: 20, 21.
        (FAIL, [LOST, FINISHED, LOST], {1: (0, 18, 59)}),
        # Only the third has streamed nothing. At 38 slot 1 decodes, reading 6, and computes 4: 10 + max(10, 11); then
        # it decodes the third and reads 5 and 6. That one had been admitted before.
        (RETRY, [LOST, FINISHED, FINISHED], {1: (0, 18, 59), 2: (18, 59, 59 + 20 + 21)}),
        # At 38 slot 1 decodes and computes 8: 10 + max(18, 11), the third token of the second. The other two decode and
        # read 10 and 12: 25, 27.
        (RESTART, [FINISHED] * 3, {0: (0, 66, 118), 1: (0, 18, 66), 2: (18, 66, 118)}),
    ],
)
def test_failure(make: Factory, policy: int, statuses: list[int], times: dict[int, tuple[int, int, int]]) -> None:
    engine = build(PLAIN, [call(0, 4, 3), call(0, 4, 3), call(1, 4, 3)], Policy(on_failure=policy), slots=[0, 0])
    driver = make(engine)
    driver.advance(30 * MS)
    # Slot 0 has prefilled the first in 18; since then it decodes it and prefills the third: 10 + max(10, 10), to 38.
    assert engine.requests["slot"].tolist() == [0, 1, 0]
    engine.slots["status"][0] = FAILED
    driver.evict(0)
    assert (engine.slots["outstanding"][0], engine.slots["free_blocks"][0]) == (0, PLAIN.kv_blocks)
    driver.advance(END)
    assert engine.requests["status"].tolist() == statuses
    assert {row: ms(engine, row) for row in times} == times
    lost = engine.requests["status"] == LOST
    assert (engine.requests["finish_ps"][lost] == 30 * MS).all()
    # 150 W · 18 + 200 W · 8 + 50 W · 5 ms; then 12 of 20 ms of 150 W · 20 + 200 W · 10 + 50 W · 10 ms; then nothing.
    assert engine.bins["energy"][0, 0] == (4550 + 3300) * W_MS
    # The iteration that was lost yields no tokens: slot 0 has given one, slot 1 all those of the requests that finish.
    assert engine.bins["output_tokens"][0].tolist() == [1, 3 * statuses.count(FINISHED)]


def test_an_iteration_that_is_lost_after_the_edge_of_a_second(make: Factory) -> None:
    engine = build(Machine(800 * MS, 0, 0), [call(0, 1, 3)], Policy(on_failure=FAIL))
    driver = make(engine)
    driver.advance(1300 * MS)
    engine.slots["status"] = FAILED
    driver.evict(0)
    driver.advance(2 * END)
    # 150 W up to the failure, of which the first second has had its part already.
    assert engine.bins["energy"][:2, 0].tolist() == [150 * J, 45 * J]
    assert engine.bins["output_tokens"][:2, 0].tolist() == [1, 0]


def test_a_failed_request_caches_its_prefix_when_it_is_computed_again(make: Factory) -> None:
    calls = [call(start, 6, 1, hashes=(1, 2, 3)) for start in (0, 300)]
    engine = build(replace(PLAIN, block_size=2), calls, unit_tokens=2)
    driver = make(engine)
    driver.advance(10 * MS)
    engine.slots["status"] = FAILED
    driver.evict(0)
    driver.advance(50 * MS)
    driver.clear(0)
    engine.slots["status"] = SERVING
    driver.advance(END)
    # 10 + max(12, 5); then 2 tokens that read 4.
    assert [ms(engine, row)[2] for row in range(2)] == [72, 319]
    assert engine.slots["free_blocks"][0] == PLAIN.kv_blocks


def test_a_failed_slot_serves_again_once_it_is_repaired(make: Factory) -> None:
    engine = build(PLAIN, [call(0, 4, 1), call(30, 4, 1)], Policy(on_failure=RETRY))
    driver = make(engine)
    driver.advance(10 * MS)
    engine.slots["status"] = FAILED
    driver.evict(0)
    driver.advance(50 * MS)
    assert engine.cursor[C_GATEWAY_COUNT] == 2 and engine.requests["status"].tolist() == [AT_GATEWAY] * 2
    driver.clear(0)
    engine.slots["status"] = SERVING
    driver.advance(END)
    # Both at once: 10 + 16. The first had been admitted before; an iteration lost has no end that could land.
    assert [ms(engine, row) for row in range(2)] == [(0, 76, 76), (50, 76, 76)]
    # 10 of 18 ms of 150 W · 18 + 200 W · 8 + 50 W · 5 ms; nothing for 40 ms; 150 W · 26 + 200 W · 16 + 50 W · 5 ms.
    first = np.floor(4550 * W_MS * (10 / 18))
    assert engine.bins["energy"][0, 0] == first + (3900 + 3200 + 250) * W_MS + 50 * J - 50 * 76 * W_MS
    assert engine.bins["prompt_tokens"][0, 0] == 8


# ------------------------------------------------------------------------------------------------- prefill and decode


def test_disaggregation(make: Factory) -> None:
    machine = replace(PLAIN, transfer_ps=MS, transfer_latency_ps=3 * MS)
    engine = build(machine, [call(0, 4, 3), call(0, 2, 2), call(1, 4, 1)], slots=[0, 0], role=[PREFILL, DECODE])
    make(engine).advance(END)
    # Both prompts in 10 + max(12, 5) = 22. The link takes 4 and 2 and 3 of latency: they arrive at 29 and 31. The first
    # has a chunk of one token that reads 4: 10 + max(2, 9), to 48; then the other's chunk reads 2 and the decode 6:
    # 10 + max(4, 13).
    assert ms(engine, 0) == (0, 22, 71)
    assert ms(engine, 1) == (0, 22, 71)
    # The third has all its tokens with the prefill, of 10 + 8.
    assert ms(engine, 2) == (22, 40, 40)
    assert engine.requests["slot"].tolist() == [1, 1, 0]
    assert engine.bins["prompt_tokens"][0].tolist() == [4 + 2 + 4, 1 + 1]
    assert engine.bins["output_tokens"][0].tolist() == [3, 3]


def test_a_link_takes_one_transfer_after_the_other(make: Factory) -> None:
    machine = replace(PLAIN, transfer_ps=10 * MS, transfer_latency_ps=3 * MS)
    engine = build(machine, [call(0, 4, 2), call(1, 2, 2)], slots=[0, 0, 0], role=[PREFILL, DECODE, DECODE])
    make(engine).advance(END)
    # Prompts in 18 and 10 + max(4, 5), to 33. The first is on the link for 40, to 58, and arrives at 61; the second
    # has to wait for the link, has it for 20, to 78, and arrives at 81. Each alone: 10 + max(2, 5 + 4 or 5 + 2).
    assert ms(engine, 0) == (0, 18, 80) and ms(engine, 1) == (18, 33, 98)
    # At 81 the other decode slot is as empty as the first one.
    assert engine.requests["slot"].tolist() == [1, 1]


def test_a_transferred_request_that_is_preempted_is_recomputed_where_it_is(make: Factory) -> None:
    # The decode slot has 5 blocks of 1 token; the first takes 3 at 14, and one more at each token.
    machine = replace(FLAT, block_size=1, kv_blocks=5, max_model_len=5)
    engine = build([replace(machine, kv_blocks=100), machine], [call(0, 2, 3), call(0, 1, 3)], role=[PREFILL, DECODE])
    make(engine).advance(END)
    # 10 + max(6, 5) for both prompts. A picosecond later both are at the decode slot, 3 and 2 blocks: 10 + max(4, 5),
    # to 31 ms and 1 ps. Now each needs a block: the second goes. The first has its third token 15 later. Then the
    # second computes its 1 + 2 tokens anew: 10 + max(6, 5), for its third.
    assert engine.requests["preemptions"].tolist() == [0, 1]
    assert engine.requests["finish_ps"].tolist() == [46 * MS + 1, 62 * MS + 1]


def test_what_a_prefill_slot_has_sent_on_survives_its_failure(make: Factory) -> None:
    machine = replace(PLAIN, transfer_ps=10 * MS)
    engine = build(machine, [call(0, 4, 2)], Policy(on_failure=FAIL), slots=[0, 0], role=[PREFILL, DECODE])
    driver = make(engine)
    driver.advance(20 * MS)
    engine.slots["status"][0] = FAILED
    driver.evict(0)
    driver.advance(END)
    # 18, 40 on the link, 10 + max(2, 9) for the second token.
    assert ms(engine, 0) == (0, 18, 77)


def test_a_transferred_request_that_begins_anew_is_prefilled_again(make: Factory) -> None:
    engine = build(PLAIN, [call(0, 4, 2)], Policy(on_failure=RESTART), slots=[0, 0, 0], role=[PREFILL, DECODE, DECODE])
    driver = make(engine)
    driver.advance(20 * MS)
    engine.slots["status"][1] = FAILED
    driver.evict(1)
    driver.advance(END)
    # Prefilled by 18 and sent on, it begins anew at 20: 18 more. A picosecond on the link, and 10 + max(2, 9).
    assert ms(engine, 0)[:2] == (0, 38)
    assert engine.requests["finish_ps"][0] == 57 * MS + 1 and engine.requests["slot"][0] == 2
    assert engine.bins["output_tokens"][0].tolist() == [2, 0, 1]


def test_phases_wait_for_themselves_alone(make: Factory) -> None:
    # One request at a time at each slot.
    machine = replace(PLAIN, transfer_ps=MS)
    calls = [call(0, 4, 4), call(1, 4, 4), call(2, 4, 4)]
    engine = build(machine, calls, slots=[0, 0], role=[PREFILL, DECODE], limit=1)
    make(engine).advance(END)
    # The first: 18, link to 22; decode slot: 19, 21, 22 to 84. The second is held until 18 ms and 1 ps, prefilled by
    # 36, on the link to 40, and held again until 84 ms and 1 ps. The third is held until 36 ms and 2 ps: it need not
    # wait for the second, nor need that wait for the third, which came to be held before.
    rows = engine.requests
    assert rows["finish_ps"][:2].tolist() == [84 * MS, 146 * MS + 1]
    assert rows["admit_ps"].tolist() == [0, 18 * MS + 1, 36 * MS + 2]
    assert rows["finish_ps"][2] == 208 * MS + 2
