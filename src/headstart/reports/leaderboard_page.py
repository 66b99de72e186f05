"""The page of `headstart leaderboard --html`: every run, the best first, and how to adopt it."""

from headstart.reports.html import render_page
from headstart.tracking.leaderboard import Leaderboard


def leaderboard_page(leaderboard: Leaderboard) -> str:
    """Return a self-contained page: the conclusion, and a table that is a list on a phone."""
    return render_page(
        "leaderboard.html.jinja", board=leaderboard, baseline=leaderboard.baseline.run_id
    )
