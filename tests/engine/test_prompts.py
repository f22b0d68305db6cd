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
