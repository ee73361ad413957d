"""A mapped vocabulary finds what the vocabulary in memory finds, and takes no memory of its own."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.dataset import mapped_vocabulary
from twofold.dataset.mapped_vocabulary import MappedVocabulary, load_mapped, save_mapped
from twofold.dataset.vocabulary import Vocabulary

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)


def mapped(folder: Path, ids: list[str], num_known: int) -> Vocabulary:
    save_mapped(Vocabulary(pa.array(ids, pa.string()), num_known), folder, "users")
    return load_mapped(folder, "users")


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, unique=True, max_size=40), st.lists(TEXTS | st.integers(-3, 3) | st.none(), max_size=20))
@pytest.mark.parametrize("hashes", [2**64, 3])
def test_it_finds_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, hashes: int, ids: list[str], others: list[str]
) -> None:
    folder, plain = tmp_path_factory.mktemp("ids"), mapped_vocabulary._hash
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped_vocabulary, "_hash", lambda text: plain(text) % hashes)  # 3: nearly all are equal
        found, expected = mapped(folder, ids, len(ids) // 2), Vocabulary(pa.array(ids, pa.string()), len(ids) // 2)
        wanted = [*ids, *others]
        assert isinstance(found, MappedVocabulary)
        assert (len(found), found.num_known, found.ids.to_pylist()) == (len(ids), len(ids) // 2, ids)
        assert found.rows_of(wanted).tolist() == expected.rows_of(wanted).tolist()
        assert [found.row_of(each) for each in wanted] == [expected.row_of(each) for each in wanted]
        assert found.ids_of(np.arange(len(ids))).to_pylist() == ids


def test_the_ids_are_mapped_and_not_read(tmp_path: Path) -> None:
    ids = [f"user {number:030}" for number in range(50_000)]
    save_mapped(Vocabulary(pa.array(ids), 50_000), tmp_path, "users")
    before = pa.total_allocated_bytes()
    found = load_mapped(tmp_path, "users")
    assert pa.total_allocated_bytes() - before < 100_000
    assert found.row_of(ids[-1]) == 49_999


def test_integers_and_older_bundles_have_the_file_of_ids_alone(tmp_path: Path) -> None:
    numbers = Vocabulary(pa.array([30, 10]), 2)
    numbers.save(tmp_path / "users.parquet")
    save_mapped(numbers, tmp_path, "users")
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]
    assert load_mapped(tmp_path, "users").rows_of([10, 30, 5]).tolist() == [1, 0, -1]
