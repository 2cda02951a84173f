"""How many tokens of prefill a forward pass may take while other rows decode: what passes took decides.

Rows that decode wait for the whole pass, so a pass full of somebody's prompt is a gap in everybody's answer. The pace
lets prefill take ``share`` of a pass's time. It counts and divides, and knows the time only from what it is told.
"""

import math

_PASSES_TO_TRUST = 16
"""Passes with prefill after which decoding alone is measured again: contexts grow meanwhile, and machines get busy."""

_MOST_RISE = 1.15
"""By which what decoding alone takes may seem to have grown from one measurement to the next."""

_LEAST_BUDGET = 8
"""Tokens of prefill that any pass may have."""


class PrefillPace:
    """The budget of prefill tokens beside decode rows. For one scheduler.

    ``share``: of the time of a pass, above 0 and below 1; at 0.4 passes with prefill take at most 1 / (1 - 0.4) = 1.7
    times what decoding alone takes. The budget follows measured times, of passes with decode rows only, since a token
    may take much longer beside them than in a pass of its own. It at most doubles from pass to pass. Where there is
    room for them, it is never below the number of decode rows, which as many tokens more at most double the work of.
    """

    def __init__(self, share: float) -> None:
        self._seconds_per_second = share / (1 - share)
        """Prefill beside one second of decoding."""
        self._decode_s: dict[int, float] = {}
        """What decoding alone takes, by ``_size_class`` of its rows."""
        self._num_since: dict[int, int] = {}
        """Passes with prefill since that was measured."""
        self._token_s: float | None = None
        """What one token of prefill adds to a pass."""
        self._is_measuring = False
        self._last_budget = 0
        """Tokens that were last offered."""

    def budget(self, num_decode: int, room: int) -> int:
        """Tokens of prefill for the next pass, beside ``num_decode`` rows: at most ``room``, which is above 0.

        0: this one pass shall go without, to measure what decoding alone takes. Never twice in a row.
        """
        size = _size_class(num_decode)
        decode_s = self._decode_s.get(size)
        if (decode_s is None or self._num_since[size] >= _PASSES_TO_TRUST) and not self._is_measuring:
            self._is_measuring = True
            return 0
        self._is_measuring = False
        budget = max(num_decode, _LEAST_BUDGET)
        if decode_s is not None and self._token_s is not None:
            tokens = decode_s * self._seconds_per_second / self._token_s
            budget = max(budget, int(min(tokens, 2 * self._last_budget)))
        self._last_budget = min(budget, room)
        return self._last_budget

    def observe(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """A pass of ``num_decode`` rows and ``num_prefill`` tokens of prefill took so long."""
        if not num_decode:
            return
        size = _size_class(num_decode)
        before = self._decode_s.get(size)
        if not num_prefill:
            # One pass that something held up must not open the door: after it decoding would seem to take long.
            self._decode_s[size] = seconds if before is None else min((before + seconds) / 2, _MOST_RISE * before)
            self._num_since[size] = 0
        elif before is not None:
            self._num_since[size] += 1
            # A rest of a prompt that is much less than there was room for says little.
            if 2 * num_prefill >= self._last_budget:
                least_s = max(before, 1e-6) * self._seconds_per_second / (2 * num_prefill)
                self._token_s = max(self._learned((seconds - before) / num_prefill), least_s)

    def _learned(self, token_s: float) -> float:
        """Half way, in powers, to a measured time of one token; one odd pass neither opens nor shuts the door."""
        if self._token_s is None:
            return token_s
        return self._token_s * math.sqrt(min(max(token_s / self._token_s, 0.25), 4.0))


def _size_class(num_rows: int) -> int:
    """Numbers of rows that decode in about the same time: within a fifth of each other."""
    return round(4 * math.log2(num_rows))
