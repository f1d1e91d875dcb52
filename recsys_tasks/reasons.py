"""Sentences a shopper can read. Each states only what the log shows."""

from datetime import UTC, datetime


def bought_before(times: int, last: int) -> str:
    """Return the reason for an item the customer knows; ``last`` in microseconds since 1970.

    >>> bought_before(3, 1512345600000000)
    'You bought this 3 times, last on 4 December 2017'

    """
    day = datetime.fromtimestamp(last / 1_000_000, UTC)
    often = "" if times == 1 else f" {times} times, last"
    return f"You bought this{often} on {day.day} {day:%B %Y}"


def because_of(title: str) -> str:
    """Return the reason that names an item of the customer's own history."""
    return f"Because you bought {title}"


def similar_to(title: str) -> str:
    """Return the reason of the placement ``similar``."""
    return f"Similar to {title}"


def popular_in(department: str) -> str:
    """Return the reason for an item that many customers buy now.

    >>> popular_in("GROCERY"), popular_in("")
    ('Popular in Grocery right now', 'Popular right now')

    """
    return (
        f"Popular in {department.capitalize() if department.isupper() else department} right now"
        if department
        else "Popular right now"
    )


PICKED = "Picked for you"
"""Where the model can name no single item of the history."""
