"""The app behind ``/recsys``. Whoever may read runs of the DAG ``nightly`` may look; who may trigger it, roll back.

A mounted app inherits no authentication from Airflow, so it asks for it itself, for every route.
"""

import hashlib
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from airflow.configuration import conf
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from pydantic import BaseModel, Field
from sqlalchemy import select
from starlette.exceptions import HTTPException as AnyHTTPException

from include.pages import leaderboard, reports
from recsys_tasks import inspector, ledger, page, versions
from recsys_tasks.errors import ContractError, NightcartError, NothingInLake, TemporarilyUnavailable
from recsys_tasks.lake import Lake
from recsys_tasks.settings import Settings

HERE = Path(__file__).parent
STYLE, SCRIPT = (HERE / "pages.css").read_text(), (HERE / "pages.js").read_text()
SCRIPT_HASH = b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
COMMON = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
NOTHING = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; base-uri 'none'"
PAGE = COMMON | {
    "Content-Security-Policy": f"{NOTHING}; script-src 'sha256-{SCRIPT_HASH}'; connect-src 'self'; frame-src 'self'; "
    "img-src data:; form-action 'self'"
}
DOCUMENT = COMMON | {"Content-Security-Policy": f"{NOTHING}; img-src data:; form-action 'none'"}
"""A report runs no script at all; the page around it gives it its theme."""

CHOICES = 60
"""Nights that may be chosen on the page of the report."""
LENGTHS = (7, 30, 90)
SERVED = 100
"""Lines of the ledger that the page shows."""


class Rollback(BaseModel):
    """What a person asks for: which version, and why."""

    version: str
    reason: str = Field(min_length=1, max_length=500)


def may_roll_back(user: Annotated[Any, Depends(get_user)]) -> bool:
    """Tell whether the user may trigger ``nightly``, and the DAG ``rollback`` where there is one."""
    return all(
        get_auth_manager().is_authorized_dag(
            method="POST",
            access_entity=DagAccessEntity.RUN,
            details=DagDetails(id=dag, team_name=DagModel.get_team_name(dag)),
            user=user,
        )
        for dag in ("nightly", "rollback")
        if dag == "nightly" or DagModel.get_current(dag)
    )


def from_our_pages(request: Request) -> None:
    """Refuse a change that another site's page may have sent with this person's cookie.

    A form can send neither JSON nor another origin than its own; a program shows a token, which no browser adds.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, with Content-Type: application/json")
    if request.headers.get("authorization", "").lower().startswith("bearer "):
        return
    ours = {request.headers.get("host"), urlsplit(conf.get("api", "base_url", fallback="")).netloc} - {"", None}
    if urlsplit(request.headers.get("origin", "")).netloc not in ours:
        raise HTTPException(403, "this request does not come from a page of this Airflow")


app = FastAPI(
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.RUN, "nightly"))],
)
MayRollBack = Annotated[bool, Depends(may_roll_back)]


@app.get("/")
def show_report(request: Request, night: str | None = None) -> Response:
    """The report of the night published last, or of another."""
    lake = Lake(Settings().lake)
    name = night or reports.current(lake)
    if not name:
        return _html(request, "nothing.html", "Report", lake=lake.root)
    content = reports.read(lake, name)
    choices = reports.nights(lake, content["shop"], CHOICES)
    if name not in [choice["name"] for choice in choices]:
        choices.append(content | {"name": name})
    return _report(request, lake, name, content, nights=choices, run=None)


@app.get("/runs/{dag_id}/{run_id:path}")
def show_report_of_run(request: Request, dag_id: str, run_id: str) -> Response:
    """The report that a run of ``nightly`` wrote: the tab on each run."""
    lake = Lake(Settings().lake)
    if dag_id != "nightly":
        return _message(
            request, "No report", f"Reports are written by runs of the DAG nightly; this is one of {dag_id}."
        )
    with create_session() as session:
        run = session.scalar(select(DagRun.id).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        query = XComModel.get_many(run_id=run_id, key="return_value", task_ids="report", dag_ids=dag_id, limit=1)
        wrote = session.scalars(query).first()
        entry = XComModel.deserialize_value(wrote) if wrote else None
    if not run:
        return _message(request, "No such run", f"Airflow knows no run {run_id} of the DAG nightly.", 404)
    if not entry:
        return _message(
            request,
            "This run has no report",
            "Its last task, report, has not ended well: it has not run yet, or a task before it failed or was skipped. "
            "The lists published last stay current until a run is whole.",
        )
    name = entry.removeprefix("reports/")
    return _report(request, lake, name, reports.read(lake, name), run=run_id)


@app.get("/report")
def report_itself(night: str) -> Response:
    """A night's report as a page of its own, as ``report.html`` in the lake is."""
    lake = Lake(Settings().lake)
    content = reports.read(lake, night)
    try:
        text = page.render(content)
    except (KeyError, UndefinedError) as error:  # an earlier Nightcart wrote it, and its own page beside it
        written = lake.path(f"reports/{night}") / "report.html"
        if not written.is_file():
            raise NothingInLake(f"{written.parent} was written by an earlier Nightcart, without a page") from error
        text = written.read_text()
    return HTMLResponse(text, headers=DOCUMENT)


@app.get("/leaderboard")
def show_leaderboard(request: Request, metric: str = page.METRIC, nights: int = 30) -> Response:
    """Every recipe's metric over the last nights."""
    lake = Lake(Settings().lake)
    length = nights if nights in LENGTHS else 30
    found = leaderboard.once_a_night(reports.nights(lake, reports.shop_name(lake) or "", 3 * length))[-length:]
    if not found:
        return _html(request, "nothing.html", "Leaderboard", lake=lake.root)
    names = leaderboard.metrics(found[::-1])
    metric = metric if metric in names else page.METRIC
    return _html(
        request,
        "leaderboard.html",
        "Leaderboard",
        views=leaderboard.views(found, metric),
        metric=metric,
        metrics=names,
        length=length,
        lengths=LENGTHS,
        frame=(leaderboard.WIDTH, leaderboard.HEIGHT),
    )


@app.get("/inspector")
def search(request: Request, q: str = "") -> Response:
    """A search for customers and items."""
    lake = Lake(Settings().lake)
    if not versions.current(lake):
        return _html(request, "nothing.html", "Inspector", lake=lake.root)
    text = q.strip()[:200]
    found = inspector.search(lake, reports.shop_of(lake), text) if text else None
    return _html(request, "inspector.html", "Inspector", text=text, found=found)


@app.get("/customer")
def show_customer(request: Request, id: str, version: str = "", beside: str = "") -> Response:
    """A customer as a version saw them, alone or beside another version."""
    lake = Lake(Settings().lake)
    shop = reports.shop_of(lake)
    kept = _kept(lake, shop, version, beside)
    customer = inspector.customer(lake, shop, id, version or None)
    other, no_other = None, None
    if beside and beside != customer["version"]:
        try:
            other = inspector.customer(lake, shop, id, beside)
        except NothingInLake as error:  # the customer is new
            no_other = str(error)
    return _html(
        request,
        "customer.html",
        "Inspector",
        customer=customer,
        other=other,
        no_other=no_other,
        sides={placement: _sides(customer, other, placement) for placement in customer["placements"]} if other else {},
        names={placement: _stages(made) for placement, made in customer["placements"].items()},
        versions=kept,
        current=(versions.current(lake) or {}).get("version"),
    )


@app.get("/item")
def show_item(request: Request, id: str, version: str = "") -> Response:
    """An item as a version saw it: who has it in their list, and what is like it."""
    lake = Lake(Settings().lake)
    shop = reports.shop_of(lake)
    kept = _kept(lake, shop, version)
    item = inspector.item(lake, shop, id, version or None)
    return _html(request, "item.html", "Inspector", item=item, versions=kept)


@app.get("/versions")
def show_versions(request: Request, may: MayRollBack) -> Response:
    """The ledger of the shop."""
    lake = Lake(Settings().lake)
    now = versions.current(lake)
    if not now:
        return _html(request, "nothing.html", "Versions", lake=lake.root)
    kept = set(versions.versions(lake, reports.shop_of(lake)))
    served, seen = ledger.served(lake, now["shop"]), {now["version"]}
    lines: list[dict[str, Any]] = []
    for line in reversed(served):
        is_current = not lines and not line["to"]
        state = "current" if is_current else "kept" if line["version"] in kept else "gone"
        lines.append(line | {"state": state, "first": line["version"] not in seen})
        seen.add(line["version"])
    hidden = max(0, len(lines) - SERVED)
    return _html(request, "versions.html", "Versions", served=lines[:SERVED], hidden=hidden, may=may)


@app.post("/rollback", dependencies=[Depends(from_our_pages)])
def roll_back(asked: Rollback, may: MayRollBack, user: Annotated[Any, Depends(get_user)]) -> dict[str, str]:
    """Make a version of this shop current again, as ``nightcart rollback`` does; FastAPI runs this in a thread."""
    if not may:
        raise HTTPException(403, "rolling back takes the right to trigger the DAG nightly")
    lake = Lake(Settings().lake)
    versions.roll_back(lake, reports.shop_of(lake), asked.version, asked.reason, user.get_name())
    return {"current": asked.version}


STATUS = {NothingInLake: 404, ContractError: 409, TemporarilyUnavailable: 503}
"""What the browser is told; of all other errors, 500."""


@app.exception_handler(NightcartError)
async def told(request: Request, error: NightcartError) -> Response:
    """What Nightcart says in words; a version that is not there is no fault of the server."""
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    return _refused(request, str(error), status)


@app.exception_handler(AnyHTTPException)
async def refused(request: Request, error: AnyHTTPException) -> Response:
    """A browser without a login goes to the login page; a program gets JSON."""
    if error.status_code == 401 and _is_browser(request):
        return RedirectResponse(get_auth_manager().get_url_login(next_url=str(request.url)), status_code=302)
    return _refused(request, str(error.detail), error.status_code)


def _refused(request: Request, text: str, status: int) -> Response:
    if not _is_browser(request):
        return JSONResponse({"detail": text}, status_code=status, headers=COMMON)
    heading = {404: "Not found", 503: "Try again in a minute"}.get(status, "This cannot be shown")
    return _message(request, heading, text, status)


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _report(request: Request, lake: Lake, name: str, content: dict[str, Any], **shown: Any) -> Response:
    night = {"name": name, "as_of": content["as_of"]}
    return _html(request, "report.html", "Report", night=night, current=reports.current(lake), **shown)


def _kept(lake: Lake, shop: Any, *wanted: str) -> list[str]:
    """The versions that may be looked at, newest first."""
    kept = versions.versions(lake, shop)[::-1]
    for version in filter(None, wanted):
        if version not in kept:
            raise NothingInLake(f"{shop.name} keeps no version {version!r}; see the page Versions")
    return kept


def _stages(made: dict[str, Any]) -> list[str]:
    """Who said something of the items of a list: the models that proposed them, then the ranker and the agent."""
    rows = made["list"] + made["left_out"]
    later = [stage for stage in ("ranker", "agent") if any(row[stage] for row in rows)]
    return [*sorted({name for row in rows for name in row["sources"]}), *later]


def _sides(customer: dict[str, Any], other: dict[str, Any], placement: str) -> list[dict[str, Any]]:
    """The list of each version, with where its items stand in the other's."""
    found = [seen["placements"].get(placement, {"champion": None, "list": []}) for seen in (customer, other)]
    ranks = [{row["item_id"]: row["rank"] for row in made["list"]} for made in found]
    sides = []
    for seen, made, there, word in zip((customer, other), found, ranks[::-1], ("There", "Here"), strict=True):
        rows = []
        for row in made["list"]:
            rank = there.get(row["item_id"])
            moved, kind = ("only", "good") if rank is None else (f"#{rank}", "muted" if rank == row["rank"] else "")
            rows.append(row | {"moved": moved, "kind": kind})
        sides.append({"version": seen["version"], "champion": made["champion"], "rows": rows, "word": word})
    return sides


def _message(request: Request, heading: str, text: str, status: int = 200) -> Response:
    return _html(request, "message.html", "", status, heading=heading, text=text)


def _html(request: Request, template: str, name: str, status: int = 200, **shown: Any) -> Response:
    lake = Lake(Settings().lake)
    frame = {"style": STYLE, "script": SCRIPT, "base": request.scope["root_path"], "page": name}
    text = _environment().get_template(template).render(frame | {"shop_name": reports.shop_name(lake)} | shown)
    return HTMLResponse(text, status, headers=PAGE)


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FileSystemLoader(HERE)
    )
    environment.filters |= page.FILTERS | {
        "query": lambda text: quote(str(text), safe=""),
        "price": lambda price: "" if price is None else f"{price:,.2f}",
        "amount": lambda value: "" if value is None else f"{value:.4g}",
        "path": lambda category: category if isinstance(category, str) else " / ".join(category or ()),
    }
    return environment
