"""Wildcards that capture, and templates that use what they captured.

    glob     up*_total       * is any text                          Prometheus, OTLP, line protocol, Kafka topics
    topic    plant/+/temp    + is one level, # at the end the rest   MQTT
    subject  plant.*.temp    * is one token, > at the end the rest   NATS

    template plant-{1}       {1} the first capture, {name} a label or what the caller offers, {.a.b} a field of the
                             payload, {{ and }} for braces themselves

No regular expressions: a sender chooses the text that is matched, and matching it takes time in proportion to its
length, whatever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

Captures = tuple[str, ...]
Style = Literal["glob", "topic", "subject"]


class Pattern(Protocol):
    """What a name has to look like."""

    wildcards: int

    def match(self, text: str) -> Captures | None:
        """What the wildcards stand for, None where the text is another."""


class Glob:
    """Text with * in it; of several ways to match, each * takes the shortest text it can, from the left."""

    def __init__(self, text: str) -> None:
        if "**" in text:
            raise ValueError("** says no more than *; write one")
        self._pieces = text.split("*")
        self.wildcards = len(self._pieces) - 1

    def match(self, text: str) -> Captures | None:
        """See Pattern."""
        first, *between, last = self._pieces if self.wildcards else (self._pieces[0], "")
        if not self.wildcards:
            return () if text == first else None
        end = len(text) - len(last)
        if not text.startswith(first) or not text.endswith(last) or end < len(first):
            return None
        captures, at = [], len(first)
        for piece in between:
            found = text.find(piece, at, end)
            if found < 0:
                return None
            captures.append(text[at:found])
            at = found + len(piece)
        return (*captures, text[at:end])


class Levels:
    """Levels between separators; the last one may be the wildcard for all that follows."""

    def __init__(self, text: str, separator: str, one: str, rest: str) -> None:
        self._separator, self._one = separator, one
        self._levels = text.split(separator)
        self._open = self._levels[-1] == rest
        if self._open:
            self._levels.pop()
        for level in self._levels:
            if rest in level or (one in level and level != one):
                raise ValueError(f"{one} stands for one whole level, {rest} for the rest at the end")
            if not level and separator == ".":
                raise ValueError("a token between two dots must not be empty")
        # The rest may be nothing at all in MQTT (a/# has a), while > stands for one token at least.
        self._least = len(self._levels) + (1 if self._open and separator == "." else 0)
        self.wildcards = self._levels.count(one) + self._open

    def match(self, text: str) -> Captures | None:
        """See Pattern."""
        if text.startswith("$") and (not self._levels or self._levels[0] == self._one):
            return None  # the broker's own topics: a leading wildcard does not mean them
        levels = text.split(self._separator)
        count = len(self._levels)
        if len(levels) < self._least or (len(levels) > count and not self._open):
            return None
        captures = []
        for wanted, level in zip(self._levels, levels, strict=False):
            if wanted == self._one:
                captures.append(level)
            elif wanted != level:
                return None
        return (*captures, self._separator.join(levels[count:])) if self._open else tuple(captures)


def pattern(text: str, style: Style) -> Pattern:
    """ValueError for one that makes no sense."""
    if not text:
        raise ValueError("must not be empty")
    if style == "glob":
        return Glob(text)
    return Levels(text, "/", "+", "#") if style == "topic" else Levels(text, ".", "*", ">")


class MissingError(KeyError):
    """A template names something that is not there."""


class Template:
    """Text with {..} in it; `names` are what stands in the braces, in order."""

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("must not be empty")
        self._text: list[str] = [""]
        self.names: list[str] = []
        at = 0
        while at < len(text):
            if text[at : at + 2] in ("{{", "}}"):
                self._text[-1] += text[at]
                at += 2
            elif text[at] == "{":
                end = text.find("}", at)
                if end < 0 or not text[at + 1 : end] or "{" in text[at + 1 : end]:
                    raise ValueError(f"the brace at character {at + 1} is not closed around a name; {{{{ is a brace")
                self.names.append(text[at + 1 : end])
                self._text.append("")
                at = end + 1
            elif text[at] == "}":
                raise ValueError(f"the brace at character {at + 1} closes nothing; }}}} is a brace")
            else:
                self._text[-1] += text[at]
                at += 1

    def fill(self, look_up: Callable[[str], str | None]) -> str:
        """The text; MissingError with the first name for which `look_up` has nothing."""
        out = self._text[0]
        for name, after in zip(self.names, self._text[1:], strict=True):
            found = look_up(name)
            if found is None:
                raise MissingError(name)
            out += found + after
        return out

    def check(self, wildcards: int) -> None:
        """ValueError for a capture that the pattern does not make."""
        for name in self.names:
            if name.isdecimal() and not 1 <= int(name) <= wildcards:
                raise ValueError(f"{{{name}}} asks for capture {name}, the pattern has {wildcards} wildcards")
