"""One attempt at a request: its result, or the reason of its failure."""

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal

from allo.sampling.endpoint import LONGEST_PAUSE, Endpoint
from allo.sampling.server_words import wait_of, without

FIRST_PAUSE = 0.5  # seconds before the first retry
# Names that servers give an unknown model if they answer 400 rather than 404.
_UNKNOWN_MODEL = {"model_not_found", "invalid_model", "unknown_model"}


@dataclass(frozen=True)
class Failure:
    """The reason why a request has no reply, without the key.

    `lost`: the server was not reached, or the connection broke; `late`: it took too long; `throttled`: too many
    requests (429); `busy`: the server cannot answer now (408, 409, 5xx); `garbled`: the reply is not of this API;
    `refused`: it rejects this request; `key`: it rejects the key; `model`: it knows no such model or address; `moved`: it
    redirects elsewhere. `wait`: seconds after which the server asks to be tried again, if it says so.
    """

    kind: Literal["lost", "late", "throttled", "busy", "garbled", "refused", "key", "model", "moved"]
    reason: str
    wait: float | None = None

    @property
    def is_of_server(self) -> bool:
        """Whether every other request would fail there too."""
        return self.kind in ("key", "model", "moved")

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind in ("lost", "late", "throttled", "busy")


async def attempt(
    request: Awaitable[Any], endpoint: Endpoint, key: str, *, seconds: float | None = None
) -> Any:
    """Return the client's reading of the server's answer, or a `Failure`, within so many seconds in any case."""
    import openai

    from allo.sampling.transport import RedirectedError

    try:
        async with asyncio.timeout(endpoint.longest_request if seconds is None else max(seconds, 0)):
            return await request
    except RedirectedError as error:
        return Failure("moved", without(key, str(error)))
    except openai.AuthenticationError:
        return Failure(
            "key",
            "the server refuses the key (401); put the right one into the environment variable "
            f"{endpoint.key_variable}",
        )
    except openai.APIStatusError as error:
        said = without(key, error.message)
        if error.status_code == 404 or (isinstance(error.code, str) and error.code in _UNKNOWN_MODEL):
            return Failure(
                "model",
                f"the server knows no such model or address ({error.status_code}: {said}); check both; the address "
                "mostly ends with /v1",
            )
        return Failure(
            _kind(error.status_code), f"{error.status_code}: {said}", wait_of(error.response.headers)
        )
    except (openai.APITimeoutError, TimeoutError):
        return Failure("late", f"no reply within {endpoint.timeout:g} s")
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        return Failure("lost", without(key, f"connection lost: {str(cause) or type(cause).__name__}"))
    except (openai.OpenAIError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # The client builds its objects even from a body that is not JSON, or not of this API.
        return Failure("garbled", without(key, f"not a reply of this API: {error}"))


def pause_before(number: int, failure: Failure) -> float:
    """Return the seconds before retry `number`, counted from 0: as the server asks, otherwise doubled each time."""
    if failure.wait is not None:
        return failure.wait
    return min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) * (1 - random.random() / 4)


def _kind(status: int) -> Literal["throttled", "busy", "refused"]:
    if status == 429:
        return "throttled"
    return "busy" if status in (408, 409) or status >= 500 else "refused"
