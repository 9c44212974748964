"""Which samples a sheet shows, what it says of them, and what it refuses."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustbench_vit.errors import InputError, StorageError
from robustbench_vit.models.build import build_model
from robustbench_vit.pictures import check_drawable, contact_sheet, drawing, ready, save_pictures
from robustbench_vit.pictures.columns import amplification, image_columns
from robustbench_vit.pictures.looks import Looks, look, look_columns
from robustbench_vit.pictures.sheet import _eps, _heading
from robustbench_vit.pictures.shown import Answer, Shown, choose, held_images, shown
from robustbench_vit.records import Outcome, Status
from tests.pictures.conftest import Made

ALL = 64


def outcome(status: Status, by: str | None = None, name: str = "s") -> Outcome:
    return Outcome(name, "autoattack", "linf", 0.1, "untargeted", status, by, distance=0.1 if by else None)


def opened(sheet: bytes) -> Image.Image:
    return Image.open(io.BytesIO(sheet))


def test_each_lane_in_turn_then_robust_then_misclassified() -> None:
    broken = [outcome(Status.BROKEN, lane) for lane in ("apgd-ce", "apgd-ce", "square", "apgd-ce", "square")]
    outcomes = [outcome(Status.MISCLASSIFIED), outcome(Status.SURVIVED), *broken, outcome(Status.CERTIFIED)]
    assert choose(outcomes, 99) == [2, 4, 3, 6, 5, 1, 7, 0]
    assert choose(outcomes, 3) == [2, 4, 3]


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        (np.full(64, 0.1), 5),
        (np.full(64, 8 / 255), 15),
        (np.full(64, np.float32(1 / 255) * 1.00001), 127),
        (np.array([0.9, *[0.05] * 63]), 10),  # one value far above the others is cut off
        (np.full(64, 0.8), 1),
        (np.zeros(64), 1),
    ],
)
def test_the_factor_fills_the_range(changes: np.ndarray, factor: float) -> None:
    clean = torch.zeros(1, 8, 8)
    moved = torch.from_numpy(changes.astype(np.float32)).view(1, 8, 8)
    sample = Shown(outcome(Status.BROKEN, "fgsm"), 0, clean, moved, Answer(0, 1), Answer(1, 1))
    assert amplification([sample]) == factor
    assert amplification([replace(sample, adversarial=None)]) == 1


def test_a_sheet_says_what_the_model_answers(made: Made) -> None:
    samples = shown(held_images(made.record, made.data), made.model, made.data, ALL)
    broken = [s for s in samples if s.outcome.status is Status.BROKEN]
    robust = [s for s in samples if s.outcome.robust]
    wrong = [s for s in samples if s.outcome.status is Status.MISCLASSIFIED]
    assert broken
    assert robust
    assert wrong
    assert samples == [*broken, *robust, *wrong]
    clean, adversarial, difference = image_columns(samples, "linf", 3)
    with torch.no_grad():
        sure, label = made.model(samples[0].adversarial[None]).softmax(1).max(1)  # type: ignore[index]
    assert adversarial.cells[0].caption == f"class {int(label)}, {100 * float(sure):.1f} %"
    assert difference.heading == "difference x 3"
    assert difference.cells[0].caption == f"linf {samples[0].outcome.distance:.4g}"
    for i, sample in enumerate(samples):
        right = drawing.BAD if sample in wrong else drawing.GOOD
        assert clean.cells[i].colour == right
        assert (adversarial.cells[i].colour == drawing.BAD) == (sample in broken)
        assert (adversarial.cells[i].caption == "") == (sample not in broken)


def test_attention_has_the_same_colours_before_and_after(made: Made) -> None:
    samples = shown(held_images(made.record, made.data), made.model, made.data, ALL)
    looks = look(made.model, samples)
    assert isinstance(looks, Looks)
    columns = list(look_columns(samples, looks))
    assert [column.heading for column in columns] == ["attention, clean", "attention, adversarial"]
    for i, (before, after) in enumerate(looks.shares):
        assert (after is None) == (samples[i].adversarial is None)
        first, second = (column.cells[i] for column in columns)
        if after is None:
            assert second.caption == ""
            continue
        brightest = [float(np.asarray(cell.drawn, float).mean(2).max()) for cell in (first, second)]
        assert max(brightest) == np.mean(drawing.STOPS[-1])
        assert (before.max() > after.max()) == (brightest[0] > brightest[1])
        shared = 100 * float(np.minimum(before.numpy(), after.numpy()).sum())
        assert second.caption == f"up to {16 * float(after.max()):.1f} x even, {shared:.0f} % shared"


def test_kept_patches_are_counted(made: Made) -> None:
    torch.manual_seed(0)
    model = build_model("digits_evit", keep_rate=0.7)
    clean, moved = torch.rand(1, 8, 8), torch.rand(1, 8, 8)
    found = outcome(Status.BROKEN, "fgsm")
    samples = [
        Shown(outcome(Status.SURVIVED), 0, clean, None, Answer(0, 1), None),
        Shown(found, 0, clean, moved, Answer(0, 1), Answer(1, 1)),
    ]
    looks = look(model, samples)
    assert isinstance(looks, Looks)
    *_, before, after = look_columns(samples, looks)
    assert (before.heading, after.heading) == ("patches kept, clean", "patches kept, adversarial")
    (first, none), (second, third) = looks.passed
    assert none is None
    assert third is not None
    assert torch.equal(first, second)
    assert before.cells[0].caption == f"{int((first == 3).sum())} of 16"
    assert after.cells[0].caption == ""
    both = int(((first == 3) & (third == 3)).sum())
    assert after.cells[1].caption == f"{int((third == 3).sum())}, {both} of them as before"


@pytest.mark.parametrize(
    ("norm", "eps", "words"),
    [("linf", 8 / 255, "8/255"), ("linf", 0.2, "0.2"), ("linf", 0.5 / 255, "0.001961"), ("l2", 128 / 255, "0.502")],
)
def test_radii_are_written_as_people_write_them(norm: str, eps: float, words: str) -> None:
    assert _eps(norm, eps) == words


def test_headings_name_the_lane_and_the_class_it_aimed_at() -> None:
    image = torch.zeros(1, 2, 2)
    broken = replace(outcome(Status.BROKEN, "apgd-t", "digits:3"), target=0)
    sample = Shown(broken, 7, image, image, Answer(7, 1), Answer(0, 1))
    assert _heading(sample) == "digits:3: true class 7, broken by apgd-t, aimed at class 0"
    said = {
        Status.SURVIVED: "s: true class 7, robust: no lane broke it",
        Status.MISCLASSIFIED: "s: true class 7, misclassified without an attack",
        Status.CERTIFIED: "s: true class 7, certified",
    }
    for status, words in said.items():
        assert _heading(replace(sample, outcome=outcome(status), adversarial=None)) == words


def test_bytes_are_equal_and_n_is_heeded(made: Made) -> None:
    arguments = (made.record, made.model, made.data)
    two = contact_sheet(*arguments, n=2)
    assert two == contact_sheet(*arguments, n=2)
    assert opened(two).height < opened(contact_sheet(*arguments, n=3)).height
    assert opened(contact_sheet(*arguments, n=2, attention=False)).width < opened(two).width


def test_the_images_stand_on_the_sheet(made: Made) -> None:
    """The clean and the adversarial image of the first sample, pixel by pixel, somewhere side by side."""
    sheet = np.asarray(opened(contact_sheet(made.record, made.model, made.data, n=1)))
    (sample,) = shown(held_images(made.record, made.data), made.model, made.data, 1)
    assert sample.adversarial is not None
    clean, moved = (np.asarray(drawing.picture(image.numpy())) for image in (sample.clean, sample.adversarial))
    left = 16
    tops = [top for top in range(len(sheet) - 192) if (sheet[top : top + 192, left : left + 192] == clean).all()]
    assert len(tops) == 1
    assert (sheet[tops[0] : tops[0] + 192, left + 208 : left + 400] == moved).all()


def test_models_without_attention_have_three_columns(made: Made) -> None:
    """A function is asked only about its images."""
    found = contact_sheet(made.record, lambda x: made.model(x), made.data, n=1)
    plain = contact_sheet(made.record, made.model, made.data, n=1, attention=False)
    assert opened(found).width == opened(plain).width
    assert opened(found).height > opened(plain).height  # by the note that says why


def test_a_record_without_images_is_refused(made: Made) -> None:
    with pytest.raises(InputError, match="the record has no images beside it"):
        contact_sheet(replace(made.record, images=None), made.model, made.data)


def test_images_and_samples_of_another_record_are_refused(made: Made) -> None:
    with pytest.raises(InputError, match="holds other samples than the record"):
        contact_sheet(made.record, made.model, made.data.take([*range(1, 32), 0]))
    with pytest.raises(InputError, match="they belong to another record"):
        contact_sheet(replace(made.record, images=made.data.x[:3]), made.model, made.data)


class Turned(nn.Module):
    """A model whose classes are counted from one further on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).roll(1, 1)


def test_another_model_is_refused(made: Made) -> None:
    with pytest.raises(InputError, match=r"not the record's model, .*this model's answer to the clean image is class"):
        contact_sheet(made.record, Turned(made.model), made.data)
    few = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InputError, match="the model has 3 classes and the samples a label"):
        contact_sheet(made.record, few, made.data)
    with pytest.raises(InputError, match="this model's answer to the adversarial image is class"):
        contact_sheet(replace(made.record, images=made.data.x), made.model, made.data)


def test_a_model_that_answers_at_random_may_contradict_a_vote(made: Made) -> None:
    sheet = contact_sheet(replace(made.record, policy="B"), Turned(made.model), made.data, n=1)
    assert opened(sheet).format == "PNG"


def test_unfinished_records_are_refused(made: Made) -> None:
    first = replace(made.record.outcomes[0], status=Status.NOT_RUN)
    with pytest.raises(InputError, match="1 of the record's 32 samples were not run"):
        contact_sheet(replace(made.record, outcomes=(first, *made.record.outcomes[1:])), made.model, made.data)


@pytest.mark.parametrize("n", [0, 65])
def test_a_sheet_has_a_sensible_number_of_samples(made: Made, n: int) -> None:
    with pytest.raises(InputError, match=f"a sheet shows 1 to 64 samples, not {n}"):
        contact_sheet(made.record, made.model, made.data, n=n)


def test_other_numbers_of_channels_cannot_be_drawn(made: Made) -> None:
    with pytest.raises(InputError, match="these have 4 channels"):
        check_drawable(replace(made.data, x=np.zeros((32, 4, 8, 8), np.float32)))


def test_folders_are_made_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready(tmp_path / "new" / "deeper").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file; give a folder for the pictures"):
        ready(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot make the folder"):
        ready(tmp_path / "file" / "below")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StorageError, match=r"cannot write into .*: no permission"):
        ready(tmp_path)


def test_a_sheet_is_saved_where_it_is_wanted(made: Made, tmp_path: Path) -> None:
    path = save_pictures(made.record, made.model, made.data, tmp_path / "sheet.png", n=1)
    assert path.read_bytes() == contact_sheet(made.record, made.model, made.data, n=1)
