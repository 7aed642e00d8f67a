import pytest

from freecp_d2.data.lexicon import SOURCES, lexicon
from freecp_d2.data.vocabulary import Vocabulary, in_words, normalized_name


@pytest.mark.parametrize(("source", "count"), [("coco_stuff", 171), ("ade20k", 150)])
def test_a_benchmark_gives_a_word_a_class(source, count):
    assert len(lexicon(source)) == count
    assert {"traffic light", "person"} <= set(lexicon(source))


def test_lvis_gives_words_without_what_it_says_in_brackets():
    words = lexicon("lvis")
    assert 1190 <= len(words) <= 1203
    assert {"aerosol can", "bow", "monitor", "first-aid kit"} <= set(words)
    assert not any(sign in word for word in words for sign in "_()")


def test_all_sources_are_a_vocabulary_in_their_order():
    words = lexicon()
    assert words == lexicon(*SOURCES)
    assert words[:171] == lexicon("coco_stuff")
    assert len({normalized_name(word) for word in words}) == len(words)
    assert all(word == in_words(word) for word in words)
    Vocabulary.from_names(words)  # raises where CLIP's tokenizer takes two for one
    alone = [set(map(normalized_name, lexicon(source))) for source in SOURCES]
    assert set(map(normalized_name, words)) == set.union(*alone)


def test_an_unknown_source_is_named():
    with pytest.raises(ValueError, match="no lexicon 'coco'; choose from coco_stuff"):
        lexicon("coco")
