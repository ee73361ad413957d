import hashlib

from twofold.digest import digest_of, file_digest


def test_equal_values_have_equal_digests_whatever_their_order():
    assert digest_of({"a": 1, "b": [1, 2.5]}) == digest_of({"b": [1, 2.5], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})
    assert len(digest_of(None)) == 64


def test_a_file_is_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"12")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"12").hexdigest()
