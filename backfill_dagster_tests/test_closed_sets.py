import pickle

from backfill_dagster.closed_sets import ClosedSet


class Weather(ClosedSet):
    """What it is like outside."""

    DRY = "dry", "No rain falls."
    WET = "wet", "Rain falls.", "Take an umbrella."


def test_a_word_is_its_text_and_says_what_it_means() -> None:
    assert [str(word) for word in Weather] == [word.value for word in Weather] == ["dry", "wet"]
    assert Weather.WET.meaning == "Rain falls."
    assert (Weather.DRY.advice, Weather.WET.advice) == (None, "Take an umbrella.")


def test_a_word_is_found_by_its_text_also_in_another_process() -> None:
    assert Weather("wet") is Weather.WET
    assert pickle.loads(pickle.dumps(Weather.WET)) is Weather.WET
