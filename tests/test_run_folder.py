import errno
import json
import multiprocessing

import pytest

from twofold.errors import RunError
from twofold.run_folder import MANIFEST, atomic_file, find_stage, locked, mark_outdated, open_stage, run_stage


def write_one(text="x"):
    def work(out):
        (out / "file.txt").write_text(text)
        return {"said": text}

    return work


def test_a_stage_is_made_once_and_again_only_when_its_inputs_change(tmp_path):
    assert not run_stage(tmp_path, "s", inputs=1, work=write_one()).was_reused
    again = run_stage(tmp_path, "s", inputs=1, work=write_one("never"))
    assert again.was_reused
    assert again.facts == {"said": "x"}
    assert not run_stage(tmp_path, "s", inputs=2, work=write_one("y")).was_reused
    assert (tmp_path / "s" / "file.txt").read_text() == "y"


def test_a_failed_stage_is_not_there_and_leaves_the_old_one(tmp_path):
    run_stage(tmp_path, "s", inputs=1, work=write_one("old"))

    def fail(out):
        (out / "file.txt").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(tmp_path, "s", inputs=2, work=fail)
    assert open_stage(tmp_path, "s").facts == {"said": "old"}


def test_a_killed_attempt_is_handed_over_only_to_the_same_inputs(tmp_path):
    def killed(out):
        (out / "checkpoint").write_text("step 7")
        raise KeyboardInterrupt

    def look(out):
        return {"found": (out / "checkpoint").exists()}

    for inputs, found in ((1, True), (2, False)):
        run = tmp_path / str(inputs)
        with pytest.raises(KeyboardInterrupt):
            run_stage(run, "s", inputs=1, work=killed)
        assert run_stage(run, "s", inputs=inputs, work=look).facts == {"found": found}


def test_messages_for_missing_half_made_and_damaged_stages(tmp_path):
    with pytest.raises(RunError, match="there is no run folder .*twofold run RECIPE"):
        open_stage(tmp_path / "nowhere", "s")
    (tmp_path / "s.partial").mkdir()
    with pytest.raises(RunError, match=r"no complete s/ stage \(it was begun and not finished\).*continues"):
        open_stage(tmp_path, "s")
    run_stage(tmp_path, "s", inputs=1, work=write_one("whole"))
    (tmp_path / "s" / "file.txt").write_text("whola")
    open_stage(tmp_path, "s")
    with pytest.raises(RunError, match=r"file.txt is damaged.*Delete"):
        open_stage(tmp_path, "s", verify=True)
    (tmp_path / "s" / "file.txt").write_text("cut")
    with pytest.raises(RunError, match="3 bytes and not the content of 5 bytes"):
        open_stage(tmp_path, "s")
    (tmp_path / "s" / "file.txt").unlink()
    with pytest.raises(RunError, match="missing, though the manifest lists it"):
        open_stage(tmp_path, "s")


def test_an_outdated_stage_is_absent_until_it_is_made_again_or_found_unchanged(tmp_path):
    run_stage(tmp_path, "s", inputs=1, work=write_one("old"))
    for inputs, was_reused in ((1, True), (2, False)):
        mark_outdated(tmp_path, "s", "absent")
        assert find_stage(tmp_path, "s") is None
        with pytest.raises(RunError, match=r"no complete s/ stage \(the one that is there is of another recipe\)"):
            open_stage(tmp_path, "s")
        assert run_stage(tmp_path, "s", inputs=inputs, work=write_one("new")).was_reused is was_reused
        assert find_stage(tmp_path, "s") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": 1}'])
def test_a_damaged_manifest_counts_as_no_stage(tmp_path, text):
    run_stage(tmp_path, "s", inputs=1, work=write_one())
    (tmp_path / "s" / MANIFEST).write_text(text)
    assert find_stage(tmp_path, "s") is None
    assert not run_stage(tmp_path, "s", inputs=1, work=write_one()).was_reused


def test_the_manifest_lists_every_file_with_its_checksum(tmp_path):
    run_stage(tmp_path, "s", inputs=1, work=write_one())
    assert list(json.loads((tmp_path / "s" / MANIFEST).read_text())["files"]) == ["file.txt"]


def test_atomic_file_keeps_the_old_one_when_writing_fails(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as partial:  # noqa: PT012 - the block is what is tested
        partial.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_message(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", "rows.parquet")
    with (
        pytest.raises(RunError, match=r"the disk is full: writing rows.parquet failed.*free some space.*continues"),
        locked(tmp_path),
    ):
        raise full
    with pytest.raises(PermissionError), locked(tmp_path):
        raise PermissionError


def _hold(folder, ready, done):
    with locked(folder):
        ready.set()
        done.wait(30)


def test_two_processes_do_not_share_a_run_folder(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=_hold, args=(tmp_path, ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RunError, match="another process is working in .*--run NAME"), locked(tmp_path):
            pass
    finally:
        done.set()
        holder.join()
