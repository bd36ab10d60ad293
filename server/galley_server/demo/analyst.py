"""The rule-based data analyst of the demo."""

from galley_server.demo.reply import AT_ONCE, Answer, Pace, say
from galley_server.demo.transcript import Request


class Analyst:
    def __init__(self, pace: Pace = AT_ONCE) -> None:
        self._pace = pace

    def __call__(self, request: Request) -> Answer:
        return say(request.asked, pace=self._pace)
