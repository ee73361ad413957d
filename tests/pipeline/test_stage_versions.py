"""A stage whose results changed has a new version: results for fixed inputs are those that were recorded."""

import json

import pytest

from tests.pipeline.stage_results import NOT_RECORDED, RECORD, RESULTS, complaint, find_results
from twofold.pipeline.job import Job
from twofold.pipeline.stage_versions import STAGE_VERSIONS


def test_every_stage_is_recorded_or_has_a_reason_why_not():
    assert STAGE_VERSIONS.keys() == RESULTS.keys() | NOT_RECORDED.keys()
    assert json.loads(RECORD.read_text()).keys() == RESULTS.keys()


@pytest.mark.parametrize("stage", RESULTS)
def test_the_version_of_a_stage_is_raised_with_its_results(stage, tmp_path):
    message = complaint(stage, json.loads(RECORD.read_text())[stage], find_results(stage, tmp_path))
    assert message is None, message


def test_what_to_do_is_said():
    recorded = {"version": 1, "inputs": "a", "results": {"rows": ["ab", 10.0, 20.0], "facts": ["cd", 0.0, 0.0]}}

    def told(**changes):
        return complaint("dataset", recorded, recorded | changes)

    assert told() is None
    changed = {"rows": ["ab", 10.0, 20.1], "facts": ["cd", 0.0, 0.0]}
    last_digit = {"rows": ["ab", 10.00001, 20.00001], "facts": ["cd", 0.0, 0.0]}
    assert told(results=last_digit) is None
    assert "(rows), but its version is still 1" in told(results=changed)
    assert "Raise 'dataset' in twofold/pipeline/stage_versions.py" in told(results=changed)
    assert "(facts, rows)" in told(results={"rows": ["abc", 10.0, 20.0]})
    for mended in ({"version": 2, "results": changed}, {"inputs": "b", "results": changed}, {"version": 2}):
        assert told(**mended).endswith("record the results with `python -m tests.pipeline.stage_results`.")


def test_a_raised_version_makes_the_stage_and_those_after_it_anew(tmp_path, checkerboard, monkeypatch):
    job = Job(checkerboard, tmp_path)

    def made(name, **inputs):
        return job.run_stage(name, inputs, lambda out: {})

    prepared = made("prepare")
    built = made("dataset", prepare=prepared.digest)
    assert made("prepare").was_reused
    assert made("dataset", prepare=prepared.digest).was_reused
    monkeypatch.setattr("twofold.pipeline.job.STAGE_VERSIONS", {**STAGE_VERSIONS, "prepare": 99})
    anew = made("prepare")
    assert not anew.was_reused
    assert not made("dataset", prepare=anew.digest).was_reused
    assert built.digest != made("dataset", prepare=anew.digest).digest
