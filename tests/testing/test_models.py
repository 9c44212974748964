"""The fixture `robust_accuracy` on models that a test brings along."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest_plugins = ["pytester"]

Tested = Callable[..., pytest.RunResult]

MODEL = """
import torch
from robustbench_vit import Record
from robustbench_vit.data import load_dataset
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights

data = load_dataset('digits').first(12)
x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)


@pytest.fixture
def model():
    made = build_model('digits_cnn')
    load_weights(made, 'leaderboards/small/weak.safetensors')
    return made.eval()
"""


def test_it_evaluates_and_returns_the_record(tested: Tested) -> None:
    ran = tested(
        f"""{MODEL}

def test_model(model, robust_accuracy):
    record = robust_accuracy(model, x, y, attack='quick', norm='linf', eps=0.02, min=0.5, seed=1)
    assert isinstance(record, Record)
    assert record.n == 12 and record.provenance['seed'] == 1
    curve = robust_accuracy(model, data, attack='quicker', eps=[0.01, 0.2], entry={{'name': 'mine'}})
    assert curve.protocol['eps'] == [0.01, 0.2]
""",
        "--junitxml=junit.xml",
    )
    ran.assert_outcomes(passed=1)
    ran.stdout.fnmatch_lines(
        [
            "*= robust accuracy =*",
            "DigitsCNN: * under quick, linf, eps 0.02, n = 12*",
            "mine: * under quicker, linf, eps 0.01, n = 12*",
            "mine: * under quicker, linf, eps 0.2, n = 12*",
        ]
    )


def test_too_low_fails_where_it_was_called(tested: Tested) -> None:
    ran = tested(
        f"""{MODEL}

def test_model(model, robust_accuracy):
    robust_accuracy(model, x, y, attack='quick', eps=0.2, min=0.9)
"""
    )
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        [
            ">   *robust_accuracy(model, x, y, attack='quick', eps=0.2, min=0.9)",
            "E * robust accuracy of model 'DigitsCNN' is *, below the minimum of 90 %",
            "E *  attack     quick, linf, eps 0.2",
            "E *  samples    * of 12 robust; interval at 95 %",
            "E *  reproduce  pytest 'test_it.py::test_model'",
        ]
    )
    assert "models.py" not in ran.stdout.str(), "no trace of the plugin's code"


def test_the_markers_minimum_is_the_default(tested: Tested) -> None:
    ran = tested(
        f"""{MODEL}

@pytest.mark.robustness(min=0.9)
def test_low(model, robust_accuracy):
    robust_accuracy(model, x, y, attack='quick', eps=0.2)

@pytest.mark.robustness(min=0.9)
def test_own(model, robust_accuracy):
    robust_accuracy(model, x, y, attack='quick', eps=0.2, min=0)

@pytest.mark.robustness(min=0.9)
def test_forgot(model, robust_accuracy):
    pass
"""
    )
    ran.assert_outcomes(failed=2, passed=1)
    ran.stdout.fnmatch_lines(["robustness(min=…) names no board and entry, and the test evaluated no model"])


def test_fewer_samples(tested: Tested) -> None:
    ran = tested(
        f"""{MODEL}

def test_model(model, robust_accuracy):
    assert robust_accuracy(model, x, y, attack='quicker').n == 5
    assert robust_accuracy(model, data, attack='quicker').n == 5
    assert robust_accuracy(model, 'digits', attack='quicker').n == 5
    robust_accuracy(model, x, y, attack='quicker', eps=0.2, min=1.0)
""",
        *("--robustness-n", "5"),
    )
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["E *of 5 robust (only the first 5, --robustness-n)*"])


def test_it_may_be_asked_for_by_name(tested: Tested) -> None:
    ran = tested(
        f"""{MODEL}

def test_model(model, request):
    request.getfixturevalue('robust_accuracy')(model, x, y, attack='quicker', min=0)
"""
    )
    ran.assert_outcomes(passed=1)
    ran.stdout.fnmatch_lines(["DigitsCNN: * under quicker, *"])


def test_what_makes_no_sense_raises(tested: Tested) -> None:
    tested(
        f"""{MODEL}
from robustbench_vit.errors import InputError, UnknownNameError

def test_bad(model, robust_accuracy):
    with pytest.raises(InputError, match='min is a share between 0 and 1, got 90'):
        robust_accuracy(model, x, y, min=90)
    with pytest.raises(InputError, match='min belongs to one eps'):
        robust_accuracy(model, x, y, eps=[0.1, 0.2], min=0.5)
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        robust_accuracy(model, x, y, attack='quik')
    with pytest.raises(TypeError, match='minimum'):
        robust_accuracy(model, x, y, minimum=0.5)
"""
    ).assert_outcomes(passed=1)
