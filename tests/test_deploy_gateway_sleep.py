"""A backend that sleeps is healthy and yet gets nothing, also where nobody steers."""

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from llmcluster.tests.backends import MODEL, call, gateway_over, servers, until


def test_a_sleeper_gets_no_requests_until_it_wakes() -> None:
    asleep = [True]

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({"is_sleeping": asleep[0]})

    asked = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
    with servers("a", "b") as (first, second):
        first.app.router.routes.append(Route("/is_sleeping", answer))
        with gateway_over([first, second]) as url:

            def spread() -> tuple[int, int]:
                for _ in range(6):
                    assert call(url, "/v1/completions", asked)[0] == 200
                seen = len(first.seen), len(second.seen)
                first.seen.clear()
                second.seen.clear()
                return seen

            until(lambda: spread() == (0, 6))
            asleep[0] = False
            until(lambda: spread()[0] > 0)
