"""The verdict on a run that was made again."""

from headstart.tracking.reproduce_run import Item, Verdict

SAME = Item("metric", "test_accuracy", "0.5", "0.5")


def test_identical_holds() -> None:
    verdict = Verdict("r", "c" * 40, (SAME,))
    assert verdict.holds
    assert "identical: 1 of 1" in verdict.as_text()
    assert verdict.as_json()["items"][0]["same"]


def test_a_changed_metric_is_told_with_its_difference() -> None:
    verdict = Verdict("r", "c" * 40, (SAME, Item("metric", "test_ece", "0.10", "0.12")))
    assert not verdict.holds
    assert "DIFFERENT in 1 of 2" in verdict.as_text()
    assert "0.10 then, 0.12 now (+0.02)" in verdict.as_text()


def test_causes_are_named_in_the_order_of_the_pipeline() -> None:
    items = (
        Item("metric", "test_accuracy", "0.5", "0.6"),
        Item("version", "version.keras", "3.15.1", "3.14.0"),
        Item("input", "dvc.data/fetched.md5", "a", "b"),
    )
    verdict = Verdict("r", "c" * 40, items)
    assert [cause.name for cause in verdict.causes] == ["version.keras", "dvc.data/fetched.md5"]
    assert "first cause: version version.keras" in verdict.as_text()


def test_another_library_alone_does_not_decide() -> None:
    verdict = Verdict("r", "c" * 40, (SAME, Item("version", "version.dvc", "3.67.1", "3.68.0")))
    assert verdict.holds
