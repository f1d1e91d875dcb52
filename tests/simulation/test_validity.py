"""The validity report tells a world that behaves like the log from one that does not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.errors import ContractError
from recsys_tasks.simulation.validity import PANELS, simulate, validity
from recsys_tasks.snapshot import DAY
from tests.simulation.shops import N_USERS, WINDOW, shelf, visits, world

END = WINDOW[1] + 10 * DAY


def measured(of, catalog=None):
    """Name -> measure."""
    return {measure.name: measure for measure in validity(of, visits(), catalog or shelf(), END).measures}


def test_every_measure_of_a_fitted_world_is_near_the_log():
    found = measured(world())
    assert list(found) == list(PANELS)
    for measure in found.values():
        assert measure.yardstick > 0
        assert measure.distance < max(3 * measure.yardstick, 0.2), measure


def test_a_world_of_endless_visits_is_found_out():
    good, bad = measured(world()), measured(replace(world(), ends=np.array([0.05])))
    assert bad["visit_length"].distance > 1 > 5 * good["visit_length"].distance


def test_a_world_without_taste_is_found_out():
    tasteless = replace(world(), popularity=np.where(np.arange(60) == 7, 0.941, 0.001), mixture=np.array([0, 0, 1.0]))
    good, bad = measured(world()), measured(tasteless)
    assert bad["popularity"].distance > 2 * good["popularity"].distance


def test_simulated_visits_follow_the_past_and_end_in_time():
    past = visits().where(visits().time < WINDOW[0])
    found = simulate(world(), past, np.arange(world().n_customers), END, np.random.default_rng(0))
    new = found.time >= WINDOW[0]
    assert new.sum() > 1000
    assert found.time.max() < END
    assert (~new).sum() == len(past)
    assert (np.diff(found.user) >= 0).all()
    assert (np.diff(found.began)[np.diff(found.user[found.starts]) == 0] > 0).all()
    assert len(np.unique(found.number.astype(np.int64) * 60 + found.item)) == len(found)  # no item twice in a visit


def test_the_report_is_the_same_again():
    assert measured(world()) == measured(world())


def test_measures_without_data_are_left_out_and_named():
    poor = replace(shelf(), departments=[""] * 60)
    report = validity(replace(world(), price=np.full(60, np.nan, np.float32)), visits(), poor, END)
    assert set(report.left_out) == {"department_transitions", "price"}
    assert {measure.name for measure in report.measures} == set(PANELS) - set(report.left_out)


def test_report_is_written_as_numbers_and_a_plot(tmp_path):
    validity(world(), visits(), shelf(), END).write(tmp_path)
    told = json.loads((tmp_path / "validity.json").read_text())
    assert [measure["name"] for measure in told["measures"]] == list(PANELS)
    assert told["customers"] == world().n_customers <= N_USERS
    assert (tmp_path / "validity.png").read_bytes().startswith(b"\x89PNG")


def test_raises_when_nobody_came_afterwards():
    with pytest.raises(ContractError, match="held out"):
        validity(world(), visits(), shelf(), WINDOW[1])
