"""The latest record of every image."""

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2.index import Index

RECORDS = st.lists(
    st.builds(
        lambda id, time, error: {"id": id, "time": time} | ({"error": "x"} if error else {}),
        st.sampled_from(["a", "b/c", "é", "z\udcff"]),
        st.floats(0, 5),
        st.booleans(),
    )
)


@settings(max_examples=100, deadline=None)
@given(RECORDS)
def test_the_latest_of_each(records):
    latest: dict = {}
    for record in records:
        former = latest.get(record["id"])
        if former is None or record["time"] >= former["time"]:
            latest[record["id"]] = record
    index = Index(records)
    expected = sorted(latest.values(), key=lambda r: r["id"].encode(errors="surrogateescape"))
    assert list(index) == expected
    assert [index.get(id) for id in latest] == list(latest.values())
    assert index.get("none") is None
    failed = sum("error" in record for record in latest.values())
    assert (index.count(failed=True), index.count(failed=False)) == (failed, len(latest) - failed)


def test_another_thread_may_go_on_with_it():
    index = Index([{"id": "a", "time": 1.0}])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(index.get, "a").result() == {"id": "a", "time": 1.0}
