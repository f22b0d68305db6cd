from __future__ import annotations

import pytest

from ppinfer.engine.prompts import Limits, RequestFactory
from ppinfer.errors import RequestError
from ppinfer.sampling import SamplingParams


def test_a_bias_must_be_of_a_token_of_the_vocabulary() -> None:
    factory = RequestFactory(None, Limits(vocab_size=10, max_model_len=20))
    assert factory.make([1], SamplingParams(logit_bias={9: 1.0})).params.logit_bias == {9: 1.0}
    with pytest.raises(RequestError, match="logit_bias names token id 10"):
        factory.make([1], SamplingParams(logit_bias={10: 1.0}))


def test_a_limit_past_the_context_means_as_much_as_there_is_room_for() -> None:
    limits = Limits(vocab_size=10, max_model_len=200, kv_tokens=64)
    factory = RequestFactory(None, limits)
    free = SamplingParams(max_tokens=10_000)
    assert factory.make([1] * 4, free).params.max_tokens == 61  # the last one is not computed
    assert factory.make([1] * 100, free).params.max_tokens == 1
    assert factory.make([1] * 4, SamplingParams(max_tokens=100)).params.max_tokens == 100
    roomy = RequestFactory(None, Limits(vocab_size=10, max_model_len=200))
    assert roomy.make([1] * 4, free).params.max_tokens == 196
