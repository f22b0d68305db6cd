"""An engine's pipeline in numbers, as the simulator takes it."""

from __future__ import annotations

import math

from ppinfer.config import EngineConfig
from ppinfer.engine.build import Pipeline
from ppinfer.errors import ConfigError
from ppinfer.planner.correction import NONE, Correction
from ppinfer.planner.hardware import Link
from ppinfer.planner.measured import MeasuredCost
from ppinfer.planner.pipeline import DriverCost, PipelineModel
from ppinfer.planner.shape import ITEM_BYTES

_COPY = 5e9
"""Bytes/s of hidden states from one process to another, and seconds of a message to the driver:
they only weigh where steps are much shorter than those of any model worth a pipeline."""
_MESSAGE = 60e-6


def pipeline_model(
    pipeline: Pipeline,
    config: EngineConfig,
    correction: Correction = NONE,
) -> PipelineModel:
    """What a pipeline that stands is predicted to do.

    Raises:
        ConfigError: nothing was measured.
    """
    measured = pipeline.measured
    if measured is None:
        raise ConfigError(
            "Nothing was measured to predict from: the model is too small to be worth it, or "
            "partition, num_micro_batches and max_prefill_tokens are all set."
        )
    link = Link(name="measured", bandwidth=_COPY, latency=correction.hop, source="")
    alone = measured.in_turn or (None,) * len(pipeline.layouts)
    return PipelineModel(
        stages=tuple(
            MeasuredCost(
                (layout.first_layer, layout.last_layer),
                pipeline.config.num_layers,
                together,
                one,
                correction,
            )
            for layout, together, one in zip(
                pipeline.layouts, measured.side_by_side, alone, strict=True
            )
        ),
        links=(link,) * (config.pp_size - 1),
        back=link,
        row_bytes=pipeline.config.hidden_size * ITEM_BYTES[pipeline.dtype],
        num_blocks=pipeline.num_blocks,
        tuning=pipeline.tuning,
        max_sequences=config.max_sequences,
        block_size=config.block_size,
        driver=DriverCost(step=correction.driver, sequence=0.0, message=_MESSAGE),
        cores=measured.cores or math.inf,
    )
