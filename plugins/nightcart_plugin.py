"""The page "Recsys" inside Airflow: how the last night went. Whoever may read runs of the DAG ``nightly`` may see it.

Every process of Airflow imports this file, so all that is heavy is imported when the first request comes.
"""

import hashlib
from base64 import b64encode
from typing import Any

from airflow.plugins_manager import AirflowPlugin

SCRIPT = """
const theme = () => { document.documentElement.dataset.theme = localStorage.getItem("theme") || "system" };
theme();
addEventListener("storage", theme);
"""
"""Follows the theme chosen in Airflow, which frames the page; without it, the browser's."""

STYLE = """
:root { color-scheme: light dark;
  --text: light-dark(#18181b, #fafafa); --muted: light-dark(#52525b, #a1a1aa); --line: light-dark(#e4e4e7, #2a3347);
  --page: light-dark(#fff, #161d2b); --head: light-dark(#f4f4f5, #1d2536); --mark: light-dark(#e6f0fb, #1b3555);
  --accent: light-dark(#017cee, #4aa8ff); --good: light-dark(#15803d, #4ade80); --bad: light-dark(#b91c1c, #f87171);
  --warn: light-dark(#fff4e5, #33230a); --warn-line: light-dark(#ffb74d, #b26a00) }
:root[data-theme=light] { color-scheme: light } :root[data-theme=dark] { color-scheme: dark }
* { box-sizing: border-box }
body { margin: 0; padding: 20px 24px 32px; max-width: 1400px; background: var(--page); color: var(--text);
  font: 14px/1.45 Inter, system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 20px; margin: 0 0 14px } h2 { font-size: 15px; margin: 26px 0 8px }
h3 { font-size: 14px; margin: 8px 0 }
small, .muted { color: var(--muted); font-size: 12.5px; font-weight: 400 }
a { color: var(--accent) } code { font: 12.5px ui-monospace, SFMono-Regular, Menlo, monospace }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 0 }
.facts div { border: 1px solid var(--line); border-radius: 6px; padding: 8px 14px }
dt { color: var(--muted); font-size: 12px } dd { margin: 0; font-weight: 600 }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(620px, 1fr)); gap: 0 24px }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100% }
th { background: var(--head); color: var(--muted); font-size: 12px; font-weight: 600; text-align: left }
th, td { padding: 5px 8px; white-space: nowrap } tr + tr td, thead + tbody td { border-top: 1px solid var(--line) }
.n { text-align: right; font-variant-numeric: tabular-nums } .wrap { white-space: normal }
tr.champion td { background: var(--mark) } tr.champion td:first-child { font-weight: 600 }
.badge { background: var(--accent); color: light-dark(#fff, #0b1a2b); border-radius: 9px; padding: 1px 8px;
  margin-left: 6px; font-size: 11px; font-weight: 600 }
.good { color: var(--good) } .bad { color: var(--bad); font-weight: 600 }
.warning { background: var(--warn); border: 1px solid var(--warn-line); border-radius: 6px; padding: 8px 14px;
  margin-top: 12px }
img { display: block; width: 100%; max-width: 900px; margin-top: 12px; border-radius: 6px; border: 1px solid #e4e4e7 }
@media (prefers-color-scheme: dark) {
  :root:not([data-theme=light]) img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen } }
:root[data-theme=dark] img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen }
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Nightcart: the last night</title>
<style>{{ style | safe }}</style>
<script>{{ script | safe }}</script>
{% if not report %}
<h1>No night has run yet</h1>
<p>This page shows how the last night went, once there was one. To run it, open the DAG
<a href="../dags/nightly" target="_top">nightly</a> and press <b>Trigger</b>, or type <code>make nightly</code>.</p>
<p class="muted">Looked for it in <code>{{ lake }}</code>, which <code>NIGHTCART_HOME</code> sets.</p>
{% else %}
<h1>The last night</h1>
<dl class="facts">
  <div><dt>Shop</dt><dd>{{ report.shop }}</dd></div>
  <div><dt>As of</dt><dd>{{ report.as_of | instant }}</dd></div>
  <div><dt>Version</dt><dd><code>{{ report.version }}</code></dd></div>
  {% for placement, made in report.lists.items() %}
  <div><dt>Lists, {{ placement }}</dt><dd>{{ made.lists | count }}</dd></div>
  {% endfor %}
  <div><dt>Index</dt>
  <dd>{{ report.index.search }} <small>recall@{{ report.index.k }} {{ report.index.recall | score }}</small></dd></div>
</dl>
{% for warning in warnings %}<div class="warning" role="alert">{{ warning }}</div>{% endfor %}

<h2>Champions</h2>
<div class="scroll"><table>
<thead><tr><th>Placement<th>Model<th>Why</tr></thead>
<tbody>{% for placement, champion in report.champions.items() %}
<tr><td>{{ placement }}<td><b>{{ champion.recipe }}</b><td class="wrap">{{ champion.reason }}</tr>
{% endfor %}</tbody></table></div>

<h2>Leaderboard <small>full catalogue, test window before the night, 95 % intervals</small></h2>
<div class="columns">{% for view in views %}<div>
<h3>{{ view.name }} <small>{{ view.meaning }}; {{ view.users | count }} customers</small></h3>
<div class="scroll"><table>
<thead><tr><th>Model<th class="n">ndcg@10<th>interval
<th class="n">recall@10<th class="n">recall@50<th class="n">coverage@10</tr></thead>
<tbody>{% for row in view.rows %}
<tr{% if row.champion_of %} class="champion"{% endif %}><td class="wrap">{{ row.recipe }}
{%- if row.champion_of %}<span class="badge" title="{{ row.champion_of | join(", ") }}">champion</span>{% endif -%}
<td class="n">{{ row.metrics["ndcg@10"] | score }}
<td class="muted">{{ row.interval["ndcg@10"][0] | score }} to {{ row.interval["ndcg@10"][1] | score }}
<td class="n">{{ row.metrics["recall@10"] | score }}<td class="n">{{ row.metrics["recall@50"] | score }}
<td class="n">{{ row.beyond_accuracy["catalog_coverage@10"] | percent }}</tr>
{% endfor %}</tbody></table></div>
</div>{% endfor %}</div>
{% for recipe, numbers in told.items() %}<p class="muted">{{ recipe }}: {{ numbers }}</p>{% endfor %}
{% if has_plot %}
<img src="leaderboard.png?{{ report.evaluation | urlencode }}" alt="ndcg@10 of every model, a panel a view">
{% endif %}

<div class="columns"><div>
<h2>Rows <small>read = kept + quarantined + duplicates</small></h2>
<div class="scroll"><table>
<thead><tr><th>Table<th class="n">Read<th class="n">Kept<th class="n">Quarantined<th class="n">Duplicates
<th>Adds up</tr></thead>
<tbody>{% for table, rows in report.counts.items() %}
<tr><td>{{ table }}<td class="n">{{ rows.read | count }}<td class="n">{{ rows.kept | count }}
<td class="n">{{ rows.quarantined | count }}<td class="n">{{ rows.duplicates | count }}
<td>{% if rows | adds_up %}<span class="good">yes</span>{% else %}<span class="bad">no</span>{% endif %}</tr>
{% endfor %}</tbody></table></div>
{% for table, rows in report.counts.items() if rows.reasons or rows.later %}<p class="muted">{{ table }}:
{% for field, count in rows.reasons.items() %}{{ count | count }} quarantined for a bad {{ field }}; {% endfor %}
{{ rows.later | count }} not used, from as_of on</p>{% endfor %}
{% if report.watermark %}<p>The log reaches {{ report.watermark | instant }}</p>{% endif %}
{% for warning in report.warnings %}<p class="bad">{{ warning }}</p>{% endfor %}
</div>
{% if report.last_night %}<div>
<h2>The night before <small>{{ report.last_night.as_of | instant }}, on what customers then did</small></h2>
<div class="scroll"><table>
<thead><tr><th>Placement<th class="n">Customers<th class="n">ndcg@10<th>interval<th class="n">recall@10</tr></thead>
<tbody>{% for placement, did in report.last_night.placements.items() %}
<tr><td>{{ placement }}<td class="n">{{ did.customers | count }}<td class="n">{{ did["ndcg@10"] | score }}
<td class="muted">{{ did.interval["ndcg@10"][0] | score }} to {{ did.interval["ndcg@10"][1] | score }}
<td class="n">{{ did["recall@10"] | score }}</tr>
{% endfor %}</tbody></table></div>
</div>{% endif %}</div>
{% endif %}
"""

VIEW_MEANING = {"all": "what they buy next, repeats count", "discovery": "only items new to them"}


def last_report() -> tuple[Any, dict[str, Any] | None]:
    """Return the lake and the last night's report, or None before the first night."""
    import json

    from recsys_tasks.lake import Lake
    from recsys_tasks.settings import Settings

    lake = Lake(Settings().lake)
    current = lake.current("reports")
    if not current or not lake.has(current["report"]):
        return lake, None
    return lake, json.loads((lake.path(current["report"]) / "report.json").read_text())


def adds_up(rows: dict[str, Any]) -> bool:
    """Tell whether every row that was read is accounted for."""
    return rows["read"] == rows["kept"] + rows["quarantined"] + rows["duplicates"]


def warnings(report: dict[str, Any]) -> list[str]:
    """Return what a person must know before anything else."""
    found = [
        f"{recipe} failed to train and was left out of this night. The log of its train task says why."
        for recipe in report["failed"]
    ]
    found += [
        f"The rows of {table} do not add up: some that were read are neither kept, quarantined nor duplicates."
        for table, rows in report["counts"].items()
        if not adds_up(rows)
    ]
    return found


def leaderboards(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a leaderboard a view, best first, with the placements that each recipe is champion of."""
    from recsys_tasks.contract import PLACEMENT_VIEW, VIEWS

    boards = []
    for view in VIEWS:
        rows = [row for row in report["leaderboard"] if row["view"] == view and row["tier"] == "everyone"]
        champions = {p: won["recipe"] for p, won in report["champions"].items() if PLACEMENT_VIEW.get(p) == view}
        for row in rows:
            row["champion_of"] = [placement for placement, recipe in champions.items() if recipe == row["recipe"]]
        rows.sort(key=lambda row: row["metrics"]["ndcg@10"], reverse=True)
        users = max((row["users"] for row in rows), default=0)
        boards.append({"name": view, "meaning": VIEW_MEANING[view], "users": users, "rows": rows})
    return boards


def told(report: dict[str, Any]) -> dict[str, str]:
    """Return what models have to say of their own training; details, with a slash in their name, are in the report."""
    found = {}
    for row in report["leaderboard"]:
        numbers = {name: value for name, value in row.get("report", {}).items() if "/" not in name}
        if numbers:
            found[row["recipe"]] = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
    return found


def render() -> str:
    """Return the page."""
    from datetime import datetime

    from jinja2 import Environment

    environment = Environment(autoescape=True)
    environment.filters |= {
        "score": lambda value: f"{value:.4f}",
        "percent": lambda value: f"{value:.2%}".replace("%", " %"),
        "count": lambda value: f"{value:,}",
        "instant": lambda text: f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}",
        "adds_up": adds_up,
    }
    lake, report = last_report()
    shown: dict[str, Any] = {"lake": lake.root}
    if report:
        shown = {
            "report": report,
            "warnings": warnings(report),
            "views": leaderboards(report),
            "told": told(report),
            "has_plot": (lake.path(report["evaluation"]) / "leaderboard.png").is_file(),
        }
    return environment.from_string(PAGE).render(style=STYLE, script=SCRIPT, **shown)


def build_app() -> Any:
    """Return the FastAPI app; a mounted app inherits no authentication, so every route here asks for it."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.RUN, "nightly"))],
    )
    script_hash = b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    headers = {
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{script_hash}'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'",
        "X-Content-Type-Options": "nosniff",
    }

    @app.exception_handler(401)
    async def to_login(request: Request, error: HTTPException) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(get_auth_manager().get_url_login(next_url=str(request.url)), status_code=302)
        return JSONResponse({"detail": error.detail}, status_code=401)

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(render(), headers=headers)

    @app.get("/leaderboard.png")
    def plot() -> FileResponse:
        lake, report = last_report()
        path = lake.path(report["evaluation"]) / "leaderboard.png" if report else None
        if not path or not path.is_file():
            raise HTTPException(404, "there is no plot yet; it comes with the first night")
        return FileResponse(path, headers=headers)

    return app


class LazyApp:
    """An ASGI app that is built when the first request comes."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on."""
        if self.app is None:
            self.app = build_app()
        await self.app(scope, receive, send)


class NightcartPlugin(AirflowPlugin):
    """Airflow finds this by its base class."""

    name = "nightcart"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": "/recsys", "name": "Recsys"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Recsys",
            "href": "recsys/",
            "destination": "nav",
            "url_route": "recsys",
            "nav_top_level": True,
        },
    ]
