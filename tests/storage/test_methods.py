"""Methods from names and plain values: the way back, values inside values, options of older files."""

from __future__ import annotations

import json

import pytest

import isthmus as im
from isthmus.storage.methods import connector_from, connector_to_dict, options_of


@pytest.mark.parametrize("kind", im.METHODS, ids=lambda kind: kind.__name__)
def test_every_method_comes_back_through_json(kind):
    assert connector_from(kind.__name__) == kind()
    assert connector_from(json.loads(json.dumps(connector_to_dict(kind())))) == kind()
    assert set(options_of(kind)) >= set(connector_to_dict(kind())) - {"name"}


def test_options_of_a_value_inside_may_stand_beside_or_within():
    wanted = im.Subnetwork((0.5, 0.75), inner=im.Trained(im.Recipe(lr=1e-3, steps=5), init="random"))
    within = {"name": "trained", "recipe": {"lr": 1e-3, "steps": 5}, "init": "random"}
    assert connector_from({"name": "subnetwork", "fraction": [0.5, 0.75], "inner": within}) == wanted
    beside = {"lr": "1e-3", "steps": 5, "init": "random"}
    assert connector_from({"name": "Subnetwork", "fraction": [0.5, "0.75"], **beside}) == wanted
    assert connector_from({"name": "Narrow", "lr": 0.1}) == im.Narrow(recipe=im.Recipe(lr=0.1, steps=8000))
    assert connector_from({"name": "Subnetwork", "inner": "Memorised"}) == im.Subnetwork(inner=im.Memorised())


def test_older_files_say_how_subnetworks_are_made_in_one_word():
    old = {
        "name": "Subnetwork",
        "fraction": 0.5,
        "init": "theta",
        "masks": 30,
        "lr": 0.002,
        "steps": 4000,
        "slack": 0.0,
    }
    assert connector_from(old | {"xi": "trained"}) == im.Subnetwork()
    assert connector_from(old | {"xi": "memorise"}) == im.Subnetwork(inner=im.Memorised())
    assert connector_from(old | {"xi": "separate"}) == im.Subnetwork(inner=im.Separated())


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("magic", r"method: expected one of Linear, .*got 'magic'"),
        ({"masks": 3}, "method: expected one of"),
        ({"name": "Dropout", "masks": "many"}, "Dropout, masks: expected an integer, got 'many'"),
        ({"name": "Dropout", "masks": True}, "masks: expected an integer"),
        ({"name": "Dropout", "every_vertex": 3}, "every_vertex: expected true or false"),
        ({"name": "Dropout", "search": "magic"}, "search: expected 'gates' or"),
        ({"name": "Linear", "steps": 3}, r"expected options among \[\], got \['steps'\]"),
        ({"name": "Subnetwork", "inner": "Guessed"}, "inner: expected one of Trained, Memorised, Separated"),
        ({"name": "Subnetwork", "inner": "Memorised", "lr": 0.1}, r"expected options among .*got \['lr'\]"),
        ({"name": "Subnetwork", "xi": "guess"}, r"got \['xi'\]"),
        ({"name": "Subnetwork", "inner": {"name": "Trained", "recipe": {"steps": 3}}, "steps": 5}, "steps once"),
        ({"name": "Narrow", "recipe": {"lr": 0.1}, "lr": 0.2}, "lr once, got it inside recipe and beside it"),
        ({"name": "Narrow", "recipe": 3}, "recipe: expected one of Recipe, or its options"),
    ],
)
def test_what_is_not_known_is_refused_by_name(entry, words):
    with pytest.raises(im.InputError, match=words):
        connector_from(entry)
