import pickle

import pytest

import isthmus as im


@pytest.mark.parametrize(
    "error",
    [
        im.InputError("keep", expected="a number", got=1.5, instead="keep=0.5"),
        im.UnsupportedError("aten.fft", "no rule", "write one"),
        im.CheckpointError("w.pt", "is damaged"),
        im.MissingExtraError("rich", "cli"),
        im.OutcomeError("not finite"),
    ],
)
def test_errors_travel_between_processes_with_their_context(error):
    error.add_note("while connecting with Dropout")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert str(error).endswith("; while connecting with Dropout")
