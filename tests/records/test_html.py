"""The card that notebooks show of a record."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

from robustbench_vit.records import Evidence, Finding, Judgement, Outcome, Reason, Record, Reliability, Status

VOID = {"br", "hr", "img"}


class Reader(HTMLParser):
    """The visible text; fails where tags don't match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def shown(record: Record) -> str:
    """What a reader sees, with single blanks."""
    reader = Reader()
    reader.feed(record._repr_html_())
    reader.close()
    assert reader.open == []
    return re.sub(r"\s+", " ", " ".join(reader.text))


def judged(evidence: Evidence, message: str = "the loss never rose") -> Judgement:
    return Judgement("cascade", 0.2, Reliability(evidence, (Reason("loss-rises", evidence, message),), {}, 0.1))


def test_a_line_for_every_attack_and_eps(record):
    text = shown(record)
    assert "made clean accuracy 83.3 % of n = 6 samples · policy A, deterministic" in text
    small, large = record.at(eps=0.1), record.at(eps=0.2)
    for one, shares in ((small, "16.7"), (large, "0.0")):
        low, high = (100 * bound for bound in one.interval())
        assert f" {shares} [{low:.1f}, {high:.1f}] " in text
    assert "linf" not in text, "this protocol names no norm"
    assert "first 3 → second 1" in re.sub(r" +", " ", text)
    assert "not assessed" in text
    assert f"protocol {record.protocol_id}" in text
    assert "warn: …" in text
    assert "logits for 10 classes" not in text, "what passed is no news"
    assert record._repr_html_().count("<tr>") == 3
    assert small._repr_html_().count("<tr>") == 2


def test_everything_is_escaped(record):
    evil = "<script>alert('&')</script>"
    outcomes = [dataclasses.replace(o, attack=evil, by=o.by and evil) for o in record.outcomes]
    protocol = {
        "norm": evil,
        "precision": evil,
        "profile": "full",
        "data": {"name": evil, "split": evil},
        "attacks": {evil: {"custom": [evil], "lanes": [{"name": evil}], "stand_ins": {"A": {"name": evil + "!"}}}},
    }
    protocol["attacks"][evil]["stand_ins"]["A"]["lanes"] = [{"name": evil}]
    made = Record(
        {"name": evil, "model": evil, "defense": evil},
        protocol,
        outcomes,
        (Finding(evil, evil, evil),),
        {"date": evil},
        policy="A",
        judgements=(Judgement(evil, 0.1, judged(Evidence.STRONG, evil).reliability),),
    )
    page = made._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;") >= 12
    shown(made)


def test_evidence_of_masked_gradients_stands_out(record):
    page = dataclasses.replace(record, judgements=(judged(Evidence.WEAK),))._repr_html_()
    assert '<td class="rbv-weak">weak: loss-rises</td>' in page
    assert "<li>weak evidence of masked gradients, loss-rises: the loss never rose</li>" in page
    strong = dataclasses.replace(record, judgements=(judged(Evidence.STRONG),))
    assert '<td class="rbv-strong">strong: loss-rises</td>' in strong._repr_html_()
    none = dataclasses.replace(record, judgements=(judged(Evidence.NONE),))
    assert "<td>none</td>" in none._repr_html_()


def test_random_models_are_shown_by_both_criteria(record):
    kept = [dataclasses.replace(o, criterion="majority", status=Status.SURVIVED, by=None) for o in record.outcomes]
    protocol = {**record.protocol, "criterion": "untargeted"}
    text = shown(dataclasses.replace(record, outcomes=(*record.outcomes, *kept), protocol=protocol, policy="B"))
    assert "policy B, answers at random" in text
    assert "by majority %" in text
    assert re.search(r"16\.7 \[\d+\.\d, \d+\.\d\] 100\.0 ", text)


def test_numbers_that_mean_nothing_say_so(record):
    smoke = dataclasses.replace(record, protocol={**record.protocol, "profile": "smoke"})
    assert "Smoke profile: shortened attacks; these numbers mean nothing." in shown(smoke)
    waiting = dataclasses.replace(record.outcomes[0], status=Status.NOT_RUN)
    text = shown(dataclasses.replace(record, outcomes=(waiting, *record.outcomes[1:])))
    assert text.count("not finished") == 1
    assert "no outcomes" in shown(Record({}, {}, (), (), {}))


def test_radii_are_written_as_people_write_them():
    for eps, said in ((8 / 255, "8/255"), (0.2, "0.2"), (0.57, "0.57"), (1, "1"), (0.1234567, "0.123457")):
        one = Outcome("s", "a", "linf", eps, "untargeted", Status.SURVIVED)
        assert f"<td>linf {said}</td>" in Record({}, {"norm": "linf"}, (one,), (), {})._repr_html_()
