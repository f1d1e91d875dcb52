"""Sentences a shopper can read. Each states only what the log shows."""

from datetime import UTC, datetime

DID = {
    "view": "looked at",
    "click": "clicked on",
    "cart": "chose",
    "favourite": "liked",
    "purchase": "bought",
    "coupon": "had a coupon for",
    "rating": "rated",
    "return": "returned",
}
"""What a customer did, by the shop's target event."""


def done_before(target: str, times: int, last: int) -> str:
    """Return the reason for an item the customer knows; ``last`` in microseconds since 1970.

    >>> done_before("purchase", 3, 1512345600000000)
    'You bought this 3 times, last on 4 December 2017'

    """
    day = datetime.fromtimestamp(last / 1_000_000, UTC)
    often = "" if times == 1 else f" {times} times, last"
    return f"You {DID[target]} this{often} on {day.day} {day:%B %Y}"


def because_of(title: str, target: str | None) -> str:
    """Return the reason that names an item of the history; ``target`` is None where the customer did less than that.

    >>> because_of("tea", "purchase"), because_of("tea", None)
    ('Because you bought tea', 'Because you were interested in tea')

    """
    return f"Because you {DID[target] if target else 'were interested in'} {title}"


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


INTERESTED = "You were interested in this"
"""For an item the customer looked at, or did something else with than the shop's target."""

PICKED = "Picked for you"
"""Where the model can name no single item of the history."""
