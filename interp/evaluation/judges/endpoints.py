"""A model behind an OpenAI-compatible endpoint that answers a judge's questions.

    endpoint = Endpoint("http://127.0.0.1:8000/v1", "some-model", cache="~/.cache/interp/judges")
    judge = RubricJudge(endpoint)
    judge(exchanges); endpoint.spent                         # Spent(requests=12, cached=0, prompt_tokens=..., cost=...)

A request is tried again after a time-out, a broken connection, a busy (429) or failing (5xx) server and a reply that is
not what the interface promises, waiting twice as long each time, or as long as the server asks. What still fails is a
reply without text and a reason: no answer is lost, and none is taken as safe. Replies are kept on disk by endpoint,
model, settings and both messages, so that a run that is started again asks only what was not answered; failures are not
kept. The key is read from an environment variable at each request, sent as a header, and neither kept nor shown.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from interp.evaluation.judges.rubrics import Reply
from interp.storage.atomic_files import write_file
from interp.storage.paths import expanded

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable of the key; an endpoint on this machine needs none."""
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_LONGEST_WAIT = 60.0
NO_CONNECTION = "no connection"
"""Beginning of the reason of a question that reached no server."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What an endpoint was asked so far."""

    requests: int = 0
    """Requests that were sent, repeated ones included."""
    cached: int = 0
    """Questions whose reply was on disk."""
    failed: int = 0
    """Questions without a reply after the last attempt."""
    prompt_tokens: int = 0
    """Tokens of questions, as the server counts them."""
    completion_tokens: int = 0
    """Tokens of replies, as the server counts them."""
    cost: float = 0.0
    """Tokens times their prices, in the prices' currency."""


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One model of an OpenAI-compatible server; a `Respondent`."""

    url: str
    """Address up to and with the version, such as `https://host/v1`."""
    model: str
    """Model of the server."""
    cache: str | Path | None = None
    """Folder of replies; None keeps none."""
    key_variable: str = KEY_VARIABLE
    """Environment variable that holds the key."""
    temperature: float | int = 0
    """Sampling temperature of the judge; the released rubric samples at 0.75, 0 can be repeated."""
    max_tokens: int = 1024
    """Length at which a reply is cut."""
    attempts: int = 5
    """Requests for one question at most."""
    timeout: float | int = 60
    """Seconds to wait for a reply."""
    wait: float | int = 1
    """Seconds before the second attempt; doubled before each further one."""
    requests_per_minute: float | int | None = None
    """Requests that may be sent in a minute; None for no limit."""
    at_once: int = 4
    """Requests under way at once."""
    prices: tuple[float | int, float | int] = (0, 0)
    """Price of a million tokens of questions and of replies."""
    _state: "_State" = field(default_factory=lambda: _State(), repr=False)

    def __post_init__(self) -> None:
        _check_address(self.url, self.key_variable)
        if self.attempts < 1 or self.at_once < 1:
            raise ValueError(
                f"attempts and at_once must be 1 or more, got {self.attempts} and {self.at_once}"
            )

    @property
    def name(self) -> str:
        """Address and model, as `--judges` takes them."""
        return f"{self.url}#{self.model}"

    @property
    def spent(self) -> Spent:
        """Requests, tokens and cost so far."""
        with self._state.lock:
            return self._state.spent

    def reply(self, system: str, users: Sequence[str]) -> list[Reply]:
        """One reply to every user message, in order; a failure is a reply without a text.

        Raises:
            ValueError: httpx is not installed, or a key that no header can hold.
        """
        _check_key(self.key_variable)
        try:
            import httpx
        except ImportError:
            raise ValueError("an endpoint needs httpx; run `pip install 'interp-workbench[eval]'`") from None
        with (
            httpx.Client(timeout=float(self.timeout)) as client,
            ThreadPoolExecutor(max_workers=self.at_once) as pool,
        ):
            return list(pool.map(lambda user: self._one(client, system, user), users))

    def _one(self, client: Any, system: str, user: str) -> Reply:
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": float(self.temperature),
            "max_tokens": self.max_tokens,
        }
        kept = self._kept(body)
        if kept is not None and (text := _stored(kept)) is not None:
            self._count(cached=1)
            return Reply(text)
        failure, wait = "", float(self.wait)
        for attempt in range(self.attempts):
            if attempt and self._state.absent:
                break
            if attempt:
                time.sleep(min(wait, _LONGEST_WAIT))
                wait *= 2
            self._state.take_turn(self.requests_per_minute)
            text, failure, asked = self._send(client, body)
            if text is not None:
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    write_file(kept, json.dumps({"reply": text}).encode())
                return Reply(text)
            if asked is None:
                break  # trying again cannot help
            wait = max(wait, asked)
        self._count(failed=1)
        self._state.absent = not self._state.reached and failure.startswith(NO_CONNECTION)
        return Reply(None, failure)

    def _send(self, client: Any, body: dict[str, Any]) -> tuple[str | None, str, float | None]:
        """A reply's text, or why there is none and the seconds to wait at least; None where no attempt helps."""
        import httpx

        key = os.environ.get(self.key_variable, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._count(requests=1)
        try:
            response = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers)
        except httpx.TimeoutException:
            return None, "time-out", 0.0
        except httpx.HTTPError as error:
            return None, f"{NO_CONNECTION} ({type(error).__name__})", 0.0
        self._state.reached, self._state.absent = True, False
        if response.status_code != 200:
            again = _seconds(response.headers.get("retry-after")) if response.status_code in _AGAIN else None
            return None, f"the server answered {response.status_code}", again
        try:
            found = response.json()
            text = _text(found["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return None, "the server's reply is malformed", 0.0
        names = ("prompt_tokens", "completion_tokens")
        self._count(**{name: _tokens(found.get("usage"), name) for name in names})
        if text is None:
            return None, "the server's reply holds no text", 0.0
        return text, "", None

    def _kept(self, body: dict[str, Any]) -> Path | None:
        """File of a question's reply: a hash of address, model, settings and both messages, and no key."""
        if self.cache is None:
            return None
        digest = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        return expanded(self.cache) / digest[:2] / f"{digest}.json"

    def _count(self, **more: int) -> None:
        state = self._state
        with state.lock:
            now = {name: getattr(state.spent, name) + number for name, number in more.items()}
            state.spent = replace(state.spent, **now)
            tokens = state.spent.prompt_tokens, state.spent.completion_tokens
            cost = sum(n * price for n, price in zip(tokens, self.prices, strict=True)) / 1e6
            state.spent = replace(state.spent, cost=float(cost))


class _State:
    """Counts of an endpoint and the time of its next request, shared by its threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.spent = Spent()
        self.reached = False
        """Whether any request has had an answer."""
        self.absent = False
        """Whether a question found nobody in all its attempts, and none has had an answer: others then try once."""
        self._next = 0.0

    def take_turn(self, per_minute: float | int | None) -> None:
        """Wait until the next request may be sent."""
        if per_minute is None:
            return
        with self.lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + 60 / per_minute
        time.sleep(max(0.0, mine - now))


def _check_address(url: str, key_variable: str) -> None:
    """Raise a ValueError for what is no address, or one with a key in it."""
    parts = None
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        whole = False
    if parts is None or not whole or any(character.isspace() for character in url):
        raise ValueError(f"an endpoint's address is http:// or https:// with a host and a port, got {url!r}")
    if "@" in parts.netloc:
        raise ValueError(f"an endpoint's address holds no key; set {key_variable} instead")


def _check_key(variable: str) -> None:
    """Raise a ValueError, without the key, for one that cannot be sent."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"${variable} holds characters that a header cannot; set it to the key alone")


def _text(content: Any) -> str | None:
    """A message's text, also where it is given in parts; None where there is none."""
    if isinstance(content, list):
        parts = [part["text"] for part in content if part.get("type") == "text"]
        content = "".join(parts) if parts else None
    return content if isinstance(content, str) else None


def _tokens(usage: Any, name: str) -> int:
    """Tokens as the server counts them; 0 where it does not, which is no reason to lose a reply."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def _seconds(text: str | None) -> float:
    """Seconds of a `Retry-After` header; 0 where there is none or a date."""
    try:
        return min(max(float(text or 0), 0.0), _LONGEST_WAIT)
    except ValueError:
        return 0.0


def _stored(path: Path) -> str | None:
    """A kept reply; None where there is none or a damaged one, which is asked for again."""
    try:
        text = json.loads(path.read_text(encoding="utf-8"))["reply"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None
