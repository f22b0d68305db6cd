"""An engine's pipeline in numbers, as the simulator takes it."""

from __future__ import annotations

import math

from ppinfer.config import EngineConfig
from ppinfer.engine.build import Pipeline
from ppinfer.errors import ConfigError
from ppinfer.planner.hardware import Link
from ppinfer.planner.measured import MeasuredCost, StepOverhead
from ppinfer.planner.pipeline import DriverCost, PipelineModel
from ppinfer.planner.shape import ITEM_BYTES


def pipeline_model(
    pipeline: Pipeline,
    config: EngineConfig,
    *,
    overhead: StepOverhead,
    link: Link,
    driver: DriverCost,
) -> PipelineModel:
    """What a pipeline that stands is predicted to do.

    Args:
        overhead, link, driver: what is not in the tables that stages measure at the start.

    Raises:
        ConfigError: nothing was measured.
    """
    measured = pipeline.measured
    if measured is None:
        raise ConfigError(
            "Nothing was measured to predict from: the model is too small to be worth it, or "
            "partition, num_micro_batches and max_prefill_tokens are all set."
        )
    alone = measured.in_turn or (None,) * len(pipeline.layouts)
    return PipelineModel(
        stages=tuple(
            MeasuredCost(
                (layout.first_layer, layout.last_layer),
                pipeline.config.num_layers,
                together,
                one,
                overhead,
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
        driver=driver,
        cores=measured.cores or math.inf,
    )
